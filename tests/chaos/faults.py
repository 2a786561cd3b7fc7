"""The faults: each function returns those of one kind, for a scene whose undisturbed run is known."""

import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.chaos import driver, effects
from tests.chaos.services.disk import PAGE
from tests.chaos.trials import Fault, Scene

T = TypeVar("T")


def spread(values: Sequence[T], most: int) -> list[T]:
    """Return at most so many of some values, at even distances."""
    if len(values) <= most:
        return list(values)
    step = len(values) / most
    return [values[int((index + 0.5) * step)] for index in range(most)]


def effects_of(scene: Scene) -> list[str]:
    """Return what an undisturbed command does to the world, in order; it is looked at once."""
    if scene.effects:
        return scene.effects
    folder = scene.world.disk.folder
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "effects"
        scene.world.reset(scene.template)
        scene.world.run(*scene.command, arm=lambda: effects.listed(folder, path))
        scene.effects = path.read_text().splitlines()
    return scene.effects


def killed_at_effects(scene: Scene, most: int) -> list[Fault]:
    """Kill -9 before an effect: all of them, or as many at even distances."""
    folder, done = scene.world.disk.folder, effects_of(scene)
    found = []
    for number in spread(range(len(done)), most):

        def arm(number: int = number) -> None:
            effects.killed_at(folder, number)

        where = f"before effect {number} of {len(done)}: {done[number]}"
        found.append(Fault("kill -9 before an effect", where, arm))
    return found


def full_at_effects(scene: Scene, most: int) -> list[Fault]:
    """Have the disk be full from an effect on."""
    folder, done = scene.world.disk.folder, effects_of(scene)
    numbers = [
        number
        for number, what in enumerate(done)
        if what.split()[0] in effects.TAKE_SPACE
    ]
    found = []
    for number in spread(numbers, most):

        def arm(number: int = number) -> None:
            effects.disk_full_at(folder, number)

        where = f"from effect {number} of {len(done)} on: {done[number]}"
        found.append(Fault("disk refuses a write", where, arm))
    return found


def full_at_pages(scene: Scene, most: int) -> list[Fault]:
    """Leave a disk of its own so many pages, up to what the command takes."""
    disk = scene.world.disk
    if not disk.own:
        return []
    scene.world.reset(scene.template)
    before, least = disk.free(), [disk.free()]
    folder = disk.folder

    def watch() -> None:
        def look(*_: str) -> None:
            least[0] = min(least[0], disk.free())
            (folder / "least").write_text(str(least[0]))

        effects.watch(folder, look)

    scene.world.run(*scene.command, arm=watch)
    taken = (before - int((folder / "least").read_text())) // PAGE
    found = []
    for pages in spread(range(taken), most):

        def fill(pages: int = pages) -> None:
            disk.fill(pages * PAGE)

        where = f"{pages} of {taken} pages left"
        found.append(Fault("disk full", where, begin=fill, lift=disk.make_room))
    return found


def killed_at_boundaries(scene: Scene) -> list[Fault]:
    """Kill -9 before and after each task that the flow calls, as it says itself which those are."""
    called = _tasks_of(scene)
    found = []
    for number, name in enumerate(called):
        for done in (False, True):

            def arm(number: int = number, done: bool = done) -> None:
                _die_at(number, done)

            where = f"{'after' if done else 'before'} task {number}, {name}"
            found.append(Fault("kill -9 at a step's boundary", where, arm))
    return found


def killed_in_stages(scene: Scene, each: int, seed: int) -> list[Fault]:
    """Kill -9 at the start of each stage of a compression, and at random moments inside it; of one moment, at that."""
    from elder.compression.stages import STAGES

    took = _seconds_of_stages(scene)
    draw, found = random.Random(seed), []
    for stage in STAGES:
        moments: list[float | None] = [
            draw.random() * took[stage.name] for _ in range(each)
        ]
        for moment in moments if each == 1 else [None, *moments]:

            def arm(name: str = stage.name, moment: float | None = moment) -> None:
                _die_in_stage(name, moment)

            kind = "kill -9 inside a stage" if moment else "kill -9 at a stage's start"
            where = f"{stage.name}, {f'after {moment:.3f} s' if moment else 'start'}"
            found.append(Fault(kind, where, arm))
    return found


def killed_at_moments(scene: Scene, count: int, seed: int) -> list[Fault]:
    """Kill -9 at random moments of a command."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        moment = draw.random() * scene.seconds
        found.append(
            Fault(
                "kill -9 at random moments", f"after {moment:.3f} s", kill_after=moment
            )
        )
    return found


def store_fails(
    scene: Scene, kinds: Iterable[str], rate: float, count: int, seed: int
) -> list[Fault]:
    """Have the store fail a share of all requests, in these ways."""
    server, kinds = scene.world.server, list(kinds)
    assert server
    found = []
    for number in range(seed, seed + count):

        def begin(number: int = number) -> None:
            server.fail(rate, kinds, number)

        kind = f"store fails {rate:.0%} of requests: {', '.join(kinds)}"
        found.append(Fault(kind, f"seed {number}", begin=begin, lift=server.be_well))
    return found


def database_restarts(scene: Scene, most: int) -> list[Fault]:
    """Restart the database before a statement, as an administrator does and as after a crash; or let it stay away."""
    postgres = scene.world.postgres
    assert postgres
    ways: dict[str, Callable[[], Any]] = {
        "database restarts": lambda: postgres.restart("fast"),
        "database crashes and comes back": lambda: postgres.restart("immediate"),
        "database stays away": lambda: postgres.stop("immediate"),
    }
    statements = _statements_of(scene)
    found = []
    for kind, happen in ways.items():
        for number in spread(range(statements), most):

            def arm(number: int = number, happen: Callable[[], Any] = happen) -> None:
                effects.statement_at(number, happen)

            where = f"before statement {number} of {statements}"
            found.append(Fault(kind, where, arm, lift=_bring_back(postgres)))
    return found


def _bring_back(postgres: Any) -> Callable[[], None]:
    def bring() -> None:
        if not postgres.runs():
            postgres.start()

    return bring


def _tasks_of(scene: Scene) -> list[str]:
    """Return the names of the tasks that a flow calls, in order."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "tasks"
        path.touch()

        def arm() -> None:
            def tell(name: str, done: bool) -> None:
                if not done:
                    with path.open("a") as handle:
                        handle.write(f"{name}\n")

            driver.at_boundaries(tell)

        scene.world.reset(scene.template)
        scene.world.run(*scene.command, arm=arm)
        return path.read_text().splitlines()


def _die_at(number: int, done: bool) -> None:
    seen = [0]

    def count(_: str, now_done: bool) -> None:
        if now_done == done:
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1

    driver.at_boundaries(count)


def _seconds_of_stages(scene: Scene) -> dict[str, float]:
    """Return how long each stage takes."""
    from elder.compression.job import Job
    from tests.chaos.forks import now

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "seconds"

        def arm() -> None:
            really_run = Job._run

            def run(job: Any, stage: Any) -> Any:
                start = now()
                result = really_run(job, stage)
                with path.open("a") as handle:
                    handle.write(f"{stage.name} {now() - start}\n")
                return result

            Job._run = run

        scene.world.reset(scene.template)
        scene.world.run(*scene.command, arm=arm)
        lines = [line.split() for line in path.read_text().splitlines()]
    return {name: float(seconds) for name, seconds in lines}


def _die_in_stage(name: str, moment: float | None) -> None:
    """Die so many seconds after a stage has begun: by the kernel's timer, which no cleaning up survives."""
    from elder.compression.job import Job

    really_run = Job._run

    def run(job: Any, stage: Any) -> Any:
        if stage.name == name and moment is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif stage.name == name:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, max(moment or 0, 1e-4))
        return really_run(job, stage)

    Job._run = run


def _statements_of(scene: Scene) -> int:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "statements"
        seen = [0]

        def arm() -> None:
            from sqlalchemy import event
            from sqlalchemy.engine import Engine

            def count(*_: Any) -> None:
                seen[0] += 1
                path.write_text(str(seen[0]))

            event.listen(Engine, "before_cursor_execute", count)

        scene.world.reset(scene.template)
        scene.world.run(*scene.command, arm=arm)
        return int(path.read_text())
