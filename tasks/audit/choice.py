"""What an audit looks at in the choice of layers: what went must be what the recorded scores say.

Each round is followed again: the layers with the lowest scores go; where a loss decided among the lightest and the
runners-up of the round before, the one that was missed the least; a merge of LaCo takes in all the layers that carry
its score; the block of the angular distance goes whole, from the layer that carries the lowest score. Of a race, those
that stayed to its end count.
"""

from collections.abc import Mapping, Sequence

from elder.record import Number, Record, Round, Scores
from elder.selection.base import lowest
from elder.selection.layer_weights import LayerWeightSettings, shortlist
from elder.selection.trials import least_missed
from elder.settings import params_of_record
from tasks.audit.evidence import Broken, Evidence
from tasks.registry.client import WEIGHTS_FILE

Values = Sequence[Number | None]
# Names of scores whose lowest value alone does not say which layers go.
BLOCK_SCORE = "angular distance of the block from here"
MERGE_SCORE = "1 - similarity after the merge"
WEIGHT_SCORE = "layer weight"


def layer_weights(evidence: Evidence) -> str:
    """Follow the selection round by round: what went must be what the scores say."""
    record = evidence.record
    scores = record.scores
    if scores is None:
        raise Broken("the record has no scores, so nothing says why these layers went")
    _follow(record, scores)
    rounds = f"{len(scores.rounds)} rounds"
    if record.weights is None:
        if scores.name == WEIGHT_SCORE:
            raise Broken("the record has scores by layer weights, but no layer weights")
        return f"{rounds} of {scores.name}; this method learns no layer weights"
    if record.weights != scores:
        raise Broken(
            "the layer weights are not the scores that the layers were chosen by"
        )
    if evidence.attached(WEIGHTS_FILE) != evidence.record_tree["weights"]:
        raise Broken(f"{WEIGHTS_FILE} of the MLflow run differs from the stored record")
    return f"layer weights of {rounds} lead to layers {', '.join(map(str, record.removed))}"


def _follow(record: Record, scores: Scores) -> None:
    """Follow all rounds, each from what the rounds before it left.

    Raises:
        Broken: naming the first round from whose scores other layers follow.
    """
    settings = params_of_record(record.lineage.params).select.settings_of("elder")
    gone: list[int] = []
    lost: dict[int, Number] = {}
    for number, one in enumerate(scores.rounds, start=1):
        fault = _scored_wrongly(one, gone, record.num_layers) or _chosen_wrongly(
            one, scores, settings, lost
        )
        if fault:
            raise Broken(f"round {number}: {fault}")
        gone += one.removed
        lost = dict(one.checked)
    if gone != record.removed:
        raise Broken(
            f"the rounds removed layers {gone}, the record says {record.removed}"
        )


def _scored_wrongly(one: Round, gone: list[int], count: int | None) -> str | None:
    """Say what is wrong with which layers carry a score, or None."""
    if len(one.values) != count:
        return f"{len(one.values)} layers have a score, the dense model has {count}"
    twice = [layer for layer in gone if one.values[layer] is not None]
    if twice:
        return f"layers {twice} went in an earlier round and have a score all the same"
    return None


def _chosen_wrongly(
    one: Round,
    scores: Scores,
    settings: LayerWeightSettings,
    lost: Mapping[int, Number],
) -> str | None:
    """Say from which scores other layers than those of the record follow, or None.

    Args:
        one: the round.
        scores: of all rounds.
        settings: of the choice by layer weights.
        lost: {layer tried in the round before: loss without it}.
    """
    values = one.values if scores.lower_goes else _negated(one.values)
    if one.checked:
        return _checked_wrongly(one, values, settings, lost)
    if one.blocks:
        values = _stayed(one, values)
    chosen = _choice(values, len(one.removed), scores.name)
    if chosen == one.removed:
        return None
    return f"by {scores.name} layers {chosen} go, the record says {one.removed}"


def _choice(values: Values, count: int, score: str) -> list[int]:
    """Return the layers that go by their scores, in order of removal.

    Args:
        values: the score of each layer, None where it was not offered; the lowest goes.
        count: how many go.
        score: what the values are.
    """
    if score == MERGE_SCORE:
        return _merged(values)
    if score == BLOCK_SCORE:
        start = lowest(list(values), 1)
        return list(range(start[0], start[0] + count)) if start else []
    return list(lowest(list(values), count))


def _merged(values: Values) -> list[int]:
    """Return the layers that one merge takes in: all that carry its one score."""
    layers = [layer for layer, value in enumerate(values) if value is not None]
    scores = {values[layer] for layer in layers}
    return layers if len(scores) == 1 else []


def _checked_wrongly(
    one: Round,
    values: Values,
    settings: LayerWeightSettings,
    lost: Mapping[int, Number],
) -> str | None:
    """Say what is wrong with a round in which the loss decided among a shortlist, or None; see `_chosen_wrongly`.

    The first and the last layer are not among these, unless they alone were offered.
    """
    losses = dict(one.checked)
    listed = shortlist(settings, values, lost) or lowest(list(values), 1)
    if set(losses) != set(listed):
        return f"layers {sorted(losses)} were tried, the shortlist is {sorted(listed)}"
    tried = dict(one.blocks) or dict.fromkeys(losses, 0)
    if set(tried) != set(losses):
        return (
            f"layers {sorted(losses)} were tried, blocks are counted of {sorted(tried)}"
        )
    missed_least = least_missed(losses, tried)
    if one.removed != [missed_least]:
        return (
            f"layer {missed_least} was missed the least, the record says {one.removed}"
        )
    return None


def _stayed(one: Round, values: Values) -> list[Number | None]:
    """Return the scores of the layers that stayed in a race: those tried on the most blocks."""
    tried = dict(one.blocks)
    most = max(tried.values())
    return [
        value if tried.get(layer) == most else None
        for layer, value in enumerate(values)
    ]


def _negated(values: Values) -> list[Number | None]:
    return [None if value is None else -value for value in values]
