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


RUN, END = "elder run", "end of elder run"
PROMOTE, ROLLBACK, COMPRESS_IT = "elder promote", "elder rollback", "elder compress"
DECISIONS = {PROMOTE, ROLLBACK}


@dataclass(frozen=True)
class Size:
    """Which scenes there are, and how many faults of a kind each meets at most.

    Attributes:
        local: scenes in the world of files.
        services: scenes in the world of services.
        effects: kills before effects.
        writes: writes that the disk refuses.
        pages: pages that a full disk has left.
        stages: random moments inside each stage.
        moments: random moments of a command.
        store: seeds for each way in which the store fails.
        database: statements before which the database restarts.
        apart: whether bodies that are cut and wrong bytes are tried out alone, too.
        pairs: pairs of promoters in each world with a scene of theirs.
        flows: flows under Prefect that are killed.
    """

    local: tuple[str, ...]
    services: tuple[str, ...]
    effects: int
    writes: int
    pages: int
    stages: int
    moments: int
    store: int
    database: int
    apart: bool
    pairs: int
    flows: int


FULL = Size(
    local=(END, PROMOTE, ROLLBACK, COMPRESS_IT, RUN),
    services=(END, PROMOTE, ROLLBACK),
    effects=40,
    writes=1000,  # all of them
    pages=15,
    stages=4,
    moments=6,
    store=8,
    database=6,
    apart=True,
    pairs=8,
    flows=3,
)
SHORT = Size(
    local=(END, COMPRESS_IT),
    services=(PROMOTE,),
    effects=3,
    writes=1,
    pages=1,
    stages=1,
    moments=0,
    store=1,
    database=1,
    apart=False,
    pairs=1,
    flows=0,
)


def scenes(world: World) -> dict[str, Scene]:
    """Return the scenes of a world by name."""
    made = [
        Scene(END, world, "settled", ("run",)),
        Scene(
            PROMOTE,
            world,
            "versions",
            ("promote", NAME, "3", *WHY),
            again=_unless_decided("promote", NAME, "3", *WHY),
        ),
        Scene(
            ROLLBACK,
            world,
            "versions",
            ("rollback", NAME, *WHY),
            again=_unless_decided("rollback", NAME, *WHY),
        ),
    ]
    if not world.server:
        made.append(Scene(COMPRESS_IT, world, "model", COMPRESS))
        made.append(Scene(RUN, world, "fresh", ("run",)))
    return {one.name: one for one in made}


def plan(world: World, size: Size, seed: int) -> Iterator[tuple[Scene, list[Fault]]]:
    """Yield each scene of a world, which has been run undisturbed, and the faults that it meets."""
    found = scenes(world)
    for name in size.services if world.server else size.local:
        scene = found[name]
        scene.undisturbed()
        if name == RUN:
            yield scene, faults.killed_at_boundaries(scene)
        elif world.server:
            yield scene, list(_of_services(scene, size, seed))
        else:
            yield scene, list(_of_process_and_disk(scene, size, seed))


def decides(world: World, size: Size) -> bool:
    """Say whether anybody promotes in a world, so that it needs versions."""
    return bool(DECISIONS.intersection(size.services if world.server else size.local))


def _of_process_and_disk(scene: Scene, size: Size, seed: int) -> Iterator[Fault]:
    if scene.name == COMPRESS_IT:
        yield from faults.killed_in_stages(scene, size.stages, seed)
    yield from faults.killed_at_effects(scene, size.effects)
    yield from faults.killed_at_moments(scene, size.moments, seed)
    yield from faults.full_at_effects(scene, size.writes)
    yield from faults.full_at_pages(scene, size.pages)


def _of_services(scene: Scene, size: Size, seed: int) -> Iterator[Fault]:
    apart = [("cut",), ("wrong bytes",)] if size.apart else []
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
