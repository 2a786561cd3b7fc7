"""What choosing the layers takes, by method; one that is not known here is taken to look at every block once."""

from collections.abc import Callable

from elder.plan import work
from elder.plan.case import Case
from elder.plan.estimate import LYING, Estimate, beside
from elder.plan.live import ACTIVATIONS, Parts
from elder.plan.simulate import Need, simulate
from elder.plan.writing import with_writing
from elder.selection.layer_weights import LayerWeightSettings

# of each kind of work, all FLOPs, and how often all layers are read
Needs = tuple[tuple[Need, ...], float, float]
Choice = Callable[[Case, int], Needs]  # of blocks at once
RACED = 0.6  # of what all blocks would take: 54 to 69 % was measured (docs/recipe.md)
FROM = {  # where layers lie
    "none": "",
    "cpu": ", layer by layer from the CPU",
    "disk": ", layer by layer from disk",
}


def choosing(case: Case, at_once: int) -> Estimate:
    """Return what the choice of layers takes with ``at_once`` blocks at once."""
    method = case.settings.select.method
    needs, flops, readings = CHOICES.get(method, _looking)(case, at_once)
    offload = case.settings.select.offload
    brought = 0.0 if offload == "none" else readings * case.layers_bytes
    found = Estimate(
        name="learn",
        mode=f"layers chosen by {method}{FROM[offload]}",
        peaks=_lying(case, beside(_at_hand(case), *needs), offload),
        batch=case.settings.select.forward_batch,
        micro_batch=at_once,
        flops=flops,
        brought=brought,
    )
    blocks = _written(case)
    return with_writing(case, found, blocks) if blocks else found


def _written(case: Case) -> int:
    """Return how many blocks the dense model writes for the choice of layers."""
    wanted = case.settings.select
    own = wanted.settings_of(wanted.method)
    if wanted.offload != "none" or not isinstance(own, LayerWeightSettings):
        return 0
    return own.blocks_written(case.samples)


def _at_hand(case: Case) -> int:
    """Return the bytes of the weights that are on the device at once."""
    if case.settings.select.offload == "none":
        return case.dense_bytes
    return case.dense_bytes - case.layers_bytes + case.largest_layer_bytes


def _lying(case: Case, peaks: tuple[Parts, ...], offload: str) -> tuple[Parts, ...]:
    """Return peaks with the layers that lie in the machine's memory meanwhile."""
    if offload != "cpu":
        return peaks
    return tuple(peak | {LYING: float(case.layers_bytes)} for peak in peaks)


def _need(case: Case, one: work.Work) -> Need:
    return simulate(case.shape, case.layers, one)


def _looking(case: Case, at_once: int) -> Needs:
    need = _need(case, work.look(case.dtype, at_once))
    passes = case.samples / at_once
    return (need,), need.flops * passes, passes


def _nothing(case: Case, at_once: int) -> Needs:
    return (Need(),), 0.0, 0.0


def _each_candidate(case: Case, rounds: int, at_once: int) -> Needs:
    """Judge each layer that is left, from the state before it on: half a pass a layer."""
    need = _need(case, work.judge(case.dtype, at_once, keep=True))
    each = sum(1 + (case.layers - gone) / 2 for gone in range(rounds))
    passes = each * case.samples / at_once
    return (need,), need.flops * passes, passes


def _sleb(case: Case, at_once: int) -> Needs:
    return _each_candidate(case, case.gone, at_once)


def _perplexity(case: Case, at_once: int) -> Needs:
    return _each_candidate(case, 1, at_once)


def _each_round(case: Case, at_once: int) -> Needs:
    needs, flops, passes = _looking(case, at_once)
    return needs, flops * case.gone, passes * case.gone


def _taylor(case: Case, at_once: int) -> Needs:
    batch = min(at_once, case.settings.select.settings_of("shortened-taylor").batch)
    need = _need(case, work.differentiate(case.dtype, batch))
    steps = case.samples / batch
    return (need,), need.flops * steps, 2 * steps


def _layer_weights(case: Case, at_once: int) -> Needs:
    """Learn weights of layers, and try a shortlist in each round; all in the first, where there are runners-up."""
    own = case.settings.select.settings_of("elder")
    assert isinstance(own, LayerWeightSettings)
    batch = min(at_once, own.batch)
    twice = case.settings.select.offload != "none"
    weighing = _need(case, work.weigh(case.dtype, batch, twice))
    steps = own.epochs * case.samples / batch
    flops = weighing.flops * steps
    if not own.tries:
        return (weighing,), flops, 2 * steps
    judging = _need(case, work.judge(case.dtype, at_once))
    later = own.shortlist + own.runners_up
    first = case.layers if own.runners_up else later
    each = 1 + first / 2 + (case.gone - 1) * (1 + later / 2)
    passes = each * (_written(case) or case.samples) / at_once
    if own.racing:
        passes *= RACED
    flops += judging.flops * passes
    state = (
        at_once * case.shape.seq_len * case.shape.text.hidden_size * case.dtype.itemsize
    )
    kept = judging.peak.get(ACTIVATIONS, 0.0) + first * state
    judging = Need({"": judging.peak | {ACTIVATIONS: kept}})
    return (weighing, judging), flops, 2 * steps + passes


CHOICES: dict[str, Choice] = {
    "elder": _layer_weights,
    "sleb": _sleb,
    "prune-comp": _each_round,
    "shortened-ppl": _perplexity,
    "shortened-taylor": _taylor,
    "random": _nothing,
    "last": _nothing,
}
