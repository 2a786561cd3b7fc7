"""Whole flows under Prefect, as people start them, killed at random moments: nothing of them is played here."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos import looking
from tests.chaos.forks import Ending
from tests.chaos.trials import AGAIN, Trial, judge, last_line
from tests.chaos.worlds import ENVIRONMENT, World
from tests.flows.running import PATIENCE, start

KIND = "kill -9 at random moments"
SCENE = "elder run under Prefect, folder and SQLite"


def try_flows(world: World, count: int, seed: int) -> Iterator[Trial]:
    """Run a flow undisturbed, then kill as many more.

    Args:
        world: without services.
        count: flows to kill; 0: run none.
        seed: of the moments.
    """
    if not count:
        return
    world.disk.unmount()  # a run asks for more room than the small disk has
    began = time.monotonic()
    ended = _run(world, None)
    wanted, took = world.look(), time.monotonic() - began
    if ended.status != 0 or wanted.faults:
        raise RuntimeError(f"a flow ended with {ended.status}: {ended.said}")
    draw = random.Random(seed)
    for _ in range(count):
        moment = draw.random() * took
        yield _try_one(world, moment, wanted)


def _try_one(world: World, moment: float, wanted: looking.State) -> Trial:
    endings = [_run(world, moment)]
    states = [world.look()]
    while states[-1].things != wanted.things and len(endings) <= AGAIN:
        endings.append(_run(world, None, anew=False))
        states.append(world.look())
    outcome, why = judge(wanted, states, endings)
    return Trial(
        scene=SCENE,
        kind=KIND,
        where=f"after {moment:.1f} s",
        outcome=outcome,
        why=why,
        status=endings[0].status,
        said=last_line(endings[-1].said),
    )


def _run(world: World, moment: float | None, anew: bool = True) -> Ending:
    """Run ``elder run`` in a process of its own, and kill it after so many seconds."""
    if anew:
        _reset(world)
    began = time.monotonic()
    process = start(world.project, env=ENVIRONMENT | {"PREFECT_HOME": _home(world)})
    try:
        process.wait(timeout=PATIENCE if moment is None else moment)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    _wait_for_none(process.pid)
    said = (world.project / "stderr").read_text()
    return Ending(process.returncode, said, time.monotonic() - began)


def _reset(world: World) -> None:
    world.reset("fresh")
    shutil.rmtree(_home(world), ignore_errors=True)
    # DVC makes its own
    shutil.rmtree(world.project / "build", ignore_errors=True)
    (world.project / "dvc.lock").unlink(missing_ok=True)


def _home(world: World) -> str:
    return str(world.place / "prefect")


def _wait_for_none(session: int) -> None:
    """Wait until all processes of a session have ended, then end those that have not: a run leaves none behind."""
    from tests.flows.running import processes_of_session

    until = time.monotonic() + 60
    while processes_of_session(session) and time.monotonic() < until:
        time.sleep(0.2)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(path.name)) == session:
                os.kill(int(path.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue
