"""What the report and the card have in common, put together from a record."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from elder.record import (
    BASELINE,
    CANDIDATE,
    DENSE,
    DOMAINS,
    CompressionRecord,
    Domain,
    Number,
    Record,
    Row,
    finite,
)
from elder.report.curves import Curve, curves
from elder.report.dots import RowValue, perplexity_values
from elder.report.heat import HeatMap, heat_map


@dataclass(frozen=True)
class Headline:
    """The perplexities that matter most.

    Attributes:
        domain: of the text, in words.
        dense: the dense model's perplexity.
        pruned: the candidate's.
        ratio: the candidate's over the dense model's.
        best: the best baseline, if one is worse than the dense model.
        closed: share of that baseline's gap in log-perplexity which the candidate closes.
    """

    domain: str
    dense: Number
    pruned: Number
    ratio: float
    best: RowValue | None = None
    closed: float | None = None


@dataclass(frozen=True)
class Summary:
    """A record, and what is drawn of it.

    Attributes:
        record: of a flow, or of ``elder compress`` alone, which has no rows.
        rows: of the comparison.
        dense: the dense model's row, if there are rows.
        candidate: the candidate's row, if there are rows.
        layers: (index, place in the order of removal, or None) of each layer.
        parameters: before and after, as far as they are known.
        maps: scores, and layer weights where those are something else.
        curves: losses of the training.
        headline: the perplexities that matter most.
    """

    record: CompressionRecord
    rows: list[Row]
    dense: Row | None
    candidate: Row | None
    layers: list[tuple[int, int | None]]
    parameters: tuple[int | None, int | None]
    maps: list[HeatMap]
    curves: list[Curve]
    headline: Headline | None


def summarise(record: CompressionRecord) -> Summary:
    """Put together what the report and the card have in common; parts that lack leave theirs empty."""
    rows = record.rows if isinstance(record, Record) else []
    dense = _row_of(DENSE, rows)
    candidate = _row_of(CANDIDATE, rows)
    return Summary(
        record=record,
        rows=rows,
        dense=dense,
        candidate=candidate,
        layers=_layers(record),
        parameters=_parameters(record, dense, candidate),
        maps=_maps(record),
        curves=curves(record.curve),
        headline=_headline(rows, "out_of_domain") or _headline(rows, "in_domain"),
    )


def _row_of(kind: str, rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.kind == kind), None)


def _layers(record: CompressionRecord) -> list[tuple[int, int | None]]:
    total = record.model.num_layers
    if not total:
        total = len(record.removed) + len(record.kept)
    order = {}
    for place, layer in enumerate(record.removed, start=1):
        order[layer] = place
    return [(layer, order.get(layer)) for layer in range(total)]


def _parameters(
    record: CompressionRecord, dense: Row | None, candidate: Row | None
) -> tuple[int | None, int | None]:
    before = (
        record.parameters_before
        or (dense.parameters if dense else None)
        or record.model.parameters
    )
    after = record.parameters_after or (candidate.parameters if candidate else None)
    return before, after


def _maps(record: CompressionRecord) -> list[HeatMap]:
    """Return one heat map for the scores and one for layer weights that the method learnt apart from them."""
    scores, weights = record.scores, record.weights
    same = scores and weights and scores.rounds == weights.rounds
    shown = [scores] if same else [scores, weights]
    maps = []
    for one in shown:
        if one and one.rounds:
            maps.append(heat_map(one, record.removed))
    return maps


def _headline(rows: Sequence[Row], domain: Domain) -> Headline | None:
    """Set the candidate's perplexity beside the dense model's; say how much of the best baseline's gap it closes."""
    dense = _finite_of(DENSE, rows, domain)
    candidate = _finite_of(CANDIDATE, rows, domain)
    if not dense or not candidate:
        return None
    before = dense[0].number
    after = candidate[0].number
    headline = Headline(
        domain=DOMAINS[domain], dense=before, pruned=after, ratio=after / before
    )
    baselines = _finite_of(BASELINE, rows, domain)
    best = min(baselines, key=_number_of, default=None)
    if best is None or best.number <= before:
        return headline
    gap = math.log(best.number / before)
    closed = math.log(best.number / after)
    return replace(headline, best=best.of, closed=closed / gap)


@dataclass(frozen=True)
class _Finite:
    """A row's number that is one, above zero."""

    number: Number
    of: RowValue


def _number_of(one: _Finite) -> Number:
    return one.number


def _finite_of(kind: str, rows: Sequence[Row], domain: Domain) -> list[_Finite]:
    """Return the perplexities of rows of a kind, as far as they are finite."""
    numbers = []
    for one in perplexity_values(rows, domain):
        number = one.value
        if number is None or not finite(number) or number <= 0:
            continue
        if one.kind == kind:
            numbers.append(_Finite(number, one))
    return numbers
