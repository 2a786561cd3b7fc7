"""Break everything that can break, many times over, and count what comes of it: ``make chaos``.

    python -m tests.chaos [--short] [--only WORD]

Exits with 1 where anything was lost, doubled, half-visible, or failed without a clear sentence.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.chaos import building, driver, promoters, table, whole
from tests.chaos.plan import FULL, SHORT, Size, decides, plan
from tests.chaos.services.disk import Disk
from tests.chaos.services.postgres import Postgres, installed
from tests.chaos.services.s3 import Server
from tests.chaos.trials import GOOD, Trial, try_fault
from tests.chaos.worlds import World

RESULTS = Path("build/chaos.json")
PAGE = Path("benchmarks/results/chaos.md")
MINUTE = 60


def main() -> None:
    """Try out, print, write, and exit."""
    options = argparse.ArgumentParser(prog="python -m tests.chaos")
    options.add_argument("--short", action="store_true", help="some faults only")
    options.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    options.add_argument("--only", default="", help="scenes and kinds with this word")
    options.add_argument("--json", type=Path, default=RESULTS, help="file to write")
    given = options.parse_args()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # tidied up as after Ctrl-C
    started = time.monotonic()
    trials: list[Trial] = []
    try:
        for trial in run(SHORT if given.short else FULL, given.seed, given.only):
            trials.append(trial)
            show(trial, len(trials))
    finally:
        minutes = (time.monotonic() - started) / MINUTE
        table.write(given.json, trials, seed=given.seed, minutes=round(minutes, 1))
        print(table.table(trials))
    for one in table.bad(trials):
        say_bad(one)
    if not (given.short or given.only):
        table.write_page(PAGE, trials, "make chaos", given.seed, minutes)
    print(f"{len(trials)} faults in {minutes:.0f} minutes; each of them: {given.json}")
    sys.exit(bool(table.bad(trials)) or not trials)


def run(size: Size, seed: int, only: str = "") -> Iterator[Trial]:
    """Try out all faults of a plan."""
    driver.warm_up()
    with worlds(size) as made:
        for world in made:
            for scene, faults in plan(world, size, seed):
                for fault in faults:
                    if only in f"{scene.name}, {world.name}, {fault.kind}":
                        yield try_fault(scene, fault)
            pairs = only in promoters.KIND and decides(world, size)
            for number in range(size.pairs if pairs else 0):
                yield promoters.try_pair(world, seed + number)
        if only in f"{whole.SCENE}, {whole.KIND}":
            yield from whole.try_flows(made[0], size.flows, seed)


@contextmanager
def worlds(size: Size) -> Iterator[list[World]]:
    """Give the worlds with all their templates: one of files, and one of services where there is PostgreSQL."""
    place = Path(tempfile.mkdtemp(prefix="elder-chaos-"))
    place.chmod(0o755)  # PostgreSQL runs as another user
    disk = Disk(place / "disk")
    with ExitStack() as held:
        held.callback(shutil.rmtree, place, ignore_errors=True)
        disk.mount()
        if not disk.own:
            print("no disk can be mounted here: none is filled up")
        held.callback(disk.unmount)
        local = World(place / "local", disk)
        local.place.mkdir()
        building.build(local, decides(local, size))
        made = [local]
        if installed():
            postgres, server = Postgres(place / "postgres"), Server()
            held.callback(postgres.stop)
            held.callback(server.stop)
            made.append(World(place / "services", disk, server, postgres))
            made[1].place.mkdir()
            building.build(made[1], decides(made[1], size), beside=local)
        else:
            print("there is no PostgreSQL: nothing of services is tried out")
        yield made


def show(trial: Trial, number: int) -> None:
    """Say how a trial ended."""
    print(
        f"{number:>4} {trial.outcome:<12} {trial.scene}: {trial.kind}, {trial.where}",
        flush=True,
    )
    if trial.outcome not in GOOD:
        say_bad(trial)


def say_bad(trial: Trial) -> None:
    """Say what should not have come of a fault."""
    print(f"{trial.outcome}: {trial.scene}: {trial.kind}, {trial.where}")
    print(f"    {trial.why}\n    exit status {trial.status}, it said: {trial.said}")


if __name__ == "__main__":
    main()
