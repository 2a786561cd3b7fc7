"""Change a compression so that it fits into memory: what keeps the result comes first.

Fewer blocks at once, then layers that lie on the CPU or the disk until they run, or are computed twice: the result
stays. Then adapters in place of all weights, which learn something else. What fits first is taken, with as many blocks
at once as fit. A compensation that does not fit is left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from elder import params
from elder.compression.choice import only_runs
from elder.errors import UserError
from elder.model.published.quantised import quantisation_of
from elder.params.catalogue import NONE
from elder.plan.case import Case
from elder.plan.estimate import Estimate, Room
from elder.plan.result import size
from elder.plan.selection import choosing
from elder.plan.stages import compensating, recovering, regularising, removing
from elder.record import Json
from elder.training.micro_batch import MicroBatch, blocks_to_learn

RANK = 16  # of adapters, where they are chosen
BUSY = 4096  # tokens at once: with half as many a large GPU waits for its next work, and takes twice as long
Plan = Callable[[Case], Estimate | None]
TRAININGS: dict[str, Plan] = {"regularise": regularising, "recover": recovering}
Changes = dict[str, Json]  # {key of a section: value}


@dataclass(frozen=True)
class Chosen:
    """What a compression will take.

    Attributes:
        case: with the parameters that hold.
        stages: that do something, in order.
        changes: {section.key: value} of the parameters that were changed so that it fits.
    """

    case: Case
    stages: tuple[Estimate, ...]
    changes: dict[str, Json]


def choose(case: Case, room: Room, alone: Room | None = None) -> Chosen:
    """Work out all stages, and change those that ``room`` does not hold.

    Args:
        case: the compression.
        room: what each may take.
        alone: what the compensation may take, where ``room`` has no limit: one of several processes does it for all.

    Raises:
        UserError: if one does not fit, whatever is changed; if the model's code cannot be planned.
    """
    order: list[tuple[str, Plan]] = [
        ("learn", _first_choice),
        ("regularise", regularising),
        ("remove", removing),
        ("compensate", compensating),
        ("recover", recovering),
    ]
    stages: list[Estimate] = []
    changes: Changes = {}
    for name, plan in order:
        found = plan(case)
        more: Changes = {}
        here = room
        if alone is not None and room.device is None and name == "compensate":
            here = alone
        if found is not None and not here.holds(found):
            found, more = _changed_to_fit(case, name, here)
        if found is not None:
            stages.append(found)
        changes |= more
        case = changed(case, more)
    return Chosen(
        case,
        tuple(stages),
        changes,
    )


def changed(case: Case, changes: dict[str, Json]) -> Case:
    """Return a case with some parameters changed, {section.key: value}."""
    settings = case.settings
    for name, value in changes.items():
        section, key = name.split(".")
        part = getattr(settings, section).model_copy(update={key: value})
        settings = settings.model_copy(update={section: part})
    return case.but(settings=settings) if changes else case


def _first_choice(case: Case) -> Estimate:
    wanted = case.settings.select.forward_batch
    at_once = MicroBatch.of_blocks(
        "learn",
        wanted,
        case.shape.seq_len,
    )
    return choosing(case, at_once.size)


def _changed_to_fit(
    case: Case, name: str, room: Room
) -> tuple[Estimate | None, Changes]:
    """Return what a stage takes once it fits, None where it is left out, and the changes."""
    try:
        return _smaller(case, name, room)
    except UserError:
        if name != "compensate":
            raise
        return None, {"compensate.method": NONE}


def _smaller(case: Case, name: str, room: Room) -> tuple[Estimate, Changes]:
    """Return what a stage takes once it is changed so that it fits, and the changes."""
    plans = {"learn": _first_choice, "compensate": compensating, **TRAININGS}
    least: Estimate | None = None
    for way, sizes in _ways(case, name, room.on_cpu):
        *more, fewest = sizes
        try:
            found = plans[name](changed(case, way | fewest))
        except UserError:
            if way:  # not every family can
                continue
            raise
        assert found is not None
        if least is None or found.memory(room.on_cpu) < least.memory(room.on_cpu):
            least = found
        if not room.holds(found):
            continue  # no more blocks fit, then
        for count in more:
            larger = plans[name](changed(case, way | count))
            if larger is not None and room.holds(larger):
                return larger, way | count
        return found, way | fewest
    raise UserError(_too_large(case, name, room, least))


def _ways(
    case: Case, name: str, on_cpu: bool
) -> Iterator[tuple[Changes, list[Changes]]]:
    """Yield what may be changed in a stage, and below it the numbers of blocks at once, the largest first."""
    settings = case.settings
    if name == "learn":
        sizes = _halved("select.forward_batch", settings.select.forward_batch)
        yield {}, sizes
        for place in _elsewhere(case, on_cpu):
            yield {"select.offload": place}, sizes
    elif name == "compensate":
        yield {}, _halved("compensate.batch", settings.compensate.batch)
    elif name in TRAININGS:
        wanted: params.Training = getattr(settings, name)
        most = blocks_to_learn(wanted, case.shape.seq_len, on_cpu)
        sizes = _halved(f"{name}.micro_batch", most)
        many = 0 if on_cpu else BUSY // case.shape.seq_len
        enough = [one for one in sizes if one[f"{name}.micro_batch"] >= many]
        fewer = sizes[len(enough) :]
        for ways in _trainings(name, wanted):
            for some in (enough, fewer):
                yield from ((way, some) for way in ways if some)


def _elsewhere(case: Case, on_cpu: bool) -> list[str]:
    """Return where layers may lie until they run, the faster place first; the rest is seen in loading."""
    settings, wanted = case.settings, case.settings.model
    can = (
        settings.select.offload == "none"
        and settings.launch.processes == 1
        and wanted.adapter != "merge"
        and only_runs(settings)
        and find_spec("accelerate") is not None
    )
    as_stored = wanted.part == "whole" and not quantisation_of(case.config.to_dict())
    places = {"cpu": not on_cpu, "disk": as_stored}
    return [place for place, fits in places.items() if can and fits]


def _trainings(name: str, wanted: params.Training) -> Iterator[list[Changes]]:
    """Yield ways to train that learn the same: all weights, then adapters; each plain, then computing layers twice."""
    twice: Changes = {f"{name}.gradient_checkpointing": True}
    adapters: Changes = {f"{name}.adapter_rank": RANK}
    if wanted.lr != "auto":  # it was meant for all weights
        adapters[f"{name}.lr"] = "auto"
    learners: list[Changes] = [{}]
    if not wanted.adapter_rank and find_spec("peft"):
        learners.append(adapters)
    for way in learners:
        yield [way] if wanted.gradient_checkpointing else [way, way | twice]


def _halved(key: str, count: int) -> list[Changes]:
    """Return a number of blocks, its half, and so on down to one, as changes of a key."""
    sizes: list[Changes] = []
    while count >= 1:
        sizes.append({key: count})
        count //= 2
    return sizes


def _too_large(case: Case, name: str, room: Room, least: Estimate | None) -> str:
    """Say that a stage does not fit, and what may help."""
    assert room.device is not None
    help_ = "use shorter blocks (calibration.seq_len), or leave the stage out"
    needed, how = float(case.dense_bytes), ""
    if least is not None:
        needed = least.memory(room.on_cpu)
        blocks = (
            "one block" if least.micro_batch == 1 else f"{least.micro_batch} blocks"
        )
        how = f", with {least.mode} and {blocks} at once"
        if needed <= room.device:
            return (
                f"{name} takes {size(least.beside)} of the machine's own memory{how}, which has {size(room.host)}: "
                f"{help_}"
            )
    left = size(max(room.device, 0))
    return (
        f"{name} takes at least {size(needed)}{how}, and model.max_memory leaves {left} for tensors: give it more, "
        f"{help_}"
    )
