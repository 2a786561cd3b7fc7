"""What is tried out: scenes, and which faults each meets; in full, or so few that it takes a few minutes."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.chaos import faults
from tests.chaos.building import NAME
from tests.chaos.looking import State
from tests.chaos.services import s3
from tests.chaos.trials import Fault, Scene
from tests.chaos.worlds import World

COMPRESS = (
    *("compress", "models/tiny", "--calibration", "data/calibration.txt"),
    *("--output", "out", "--layers", "1", "--samples", "8", "--seq-len", "32"),
    *("--set", "recover.epochs=1", "--set", "recover.lr=0.01"),
    *("--set", "regularise.epochs=1", "--set", "regularise.lr=0.01"),
    *("--set", "regularise.lambda2=0.1", "--set", "compensate.method=linear"),
)
WHY = ("--yes", "--reason", "chaos")
ERRORS = ("refuse", "lose the answer", "drop")
RATE = 0.3  # of the store's requests


@dataclass(frozen=True)
class Size:
    """How many faults of a kind a scene meets at most.

    Attributes:
        effects: kills before effects.
        writes: writes that the disk refuses.
        pages: pages that a full disk has left.
        stages: random moments inside each stage.
        moments: random moments of a command.
        store: seeds for each way in which the store fails.
        database: statements before which the database restarts.
        steps: whether rollbacks, boundaries of all steps and single ways of failing are tried out, too.
        pairs: pairs of promoters.
        flows: flows under Prefect that are killed.
    """

    effects: int
    writes: int
    pages: int
    stages: int
    moments: int
    store: int
    database: int
    steps: bool
    pairs: int
    flows: int


FULL = Size(
    effects=40,
    writes=1000,  # all of them
    pages=15,
    stages=4,
    moments=6,
    store=8,
    database=6,
    steps=True,
    pairs=8,
    flows=3,
)
SHORT = Size(
    effects=4,
    writes=1,
    pages=1,
    stages=1,
    moments=0,
    store=1,
    database=1,
    steps=False,
    pairs=1,
    flows=0,
)


def scenes(world: World) -> dict[str, Scene]:
    """Return the scenes of a world by name."""
    made = [
        Scene("end of elder run", world, "settled", ("run",)),
        Scene(
            "elder promote",
            world,
            "versions",
            ("promote", NAME, "3", *WHY),
            again=_unless_decided("promote", NAME, "3", *WHY),
        ),
        Scene(
            "elder rollback",
            world,
            "versions",
            ("rollback", NAME, *WHY),
            again=_unless_decided("rollback", NAME, *WHY),
        ),
    ]
    if not world.server:
        made.append(Scene("elder compress", world, "model", COMPRESS))
        made.append(Scene("elder run", world, "fresh", ("run",)))
    return {one.name: one for one in made}


def plan(world: World, size: Size, seed: int) -> Iterator[tuple[Scene, list[Fault]]]:
    """Yield each scene of a world, which has been run undisturbed, and the faults that it meets."""
    found = scenes(world)
    if not size.steps:
        found.pop("elder run", None)
        found.pop("elder rollback", None)
    for scene in found.values():
        scene.undisturbed()
        if scene.name == "elder run":
            yield scene, faults.killed_at_boundaries(scene)
        elif world.server:
            yield scene, list(_of_services(scene, size, seed))
        else:
            yield scene, list(_of_process_and_disk(scene, size, seed))


def _of_process_and_disk(scene: Scene, size: Size, seed: int) -> Iterator[Fault]:
    if scene.name == "elder compress":
        yield from faults.killed_in_stages(scene, size.stages, seed)
    yield from faults.killed_at_effects(scene, size.effects)
    yield from faults.killed_at_moments(scene, size.moments, seed)
    yield from faults.full_at_effects(scene, size.writes)
    yield from faults.full_at_pages(scene, size.pages)


def _of_services(scene: Scene, size: Size, seed: int) -> Iterator[Fault]:
    apart = [("cut",), ("wrong bytes",)] if size.steps else []
    for kinds in (ERRORS, *apart, s3.FAULTS):
        yield from faults.store_fails(scene, kinds, RATE, size.store, seed)
    yield from faults.store_fails(scene, ERRORS, 1.0, 1, seed)
    yield from faults.killed_at_effects(scene, size.effects // 2)
    yield from faults.database_restarts(scene, size.database)


def _unless_decided(*command: str):
    """Give a command again, unless its decision stands in the history: then that is told, as its refusal says."""

    def again(state: State) -> tuple[str, ...]:
        decided = "decision 3" in state.things
        return ("history", NAME) if decided else command

    return again
