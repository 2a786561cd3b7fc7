"""The scores of a selection as a heat map: a row for each round, a cell for each layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from elder.record import Number, Round, Scores, finite

TABULAR = 16  # layers up to which a heat map prints its values
DARKEST = 70  # percent; full colour is left to what is removed
REST = 0.9  # share of the layers on which the scale ends


@dataclass(frozen=True)
class Cell:
    """One layer in one round.

    Attributes:
        layer: its index in the dense model.
        value: its score, None where it was not offered.
        level: how little it matters, 0 to 70 percent of colour.
        goes: whether it was removed.
        loss: the loss without it, where that was tried.
    """

    layer: int
    value: Number | None
    level: int | None
    goes: bool
    loss: Number | None


@dataclass(frozen=True)
class HeatRow:
    """One round."""

    cells: list[Cell]


@dataclass(frozen=True)
class HeatMap:
    """All rounds of a selection.

    Attributes:
        name: what the values are.
        rule: which layer goes, in words.
        rows: one for each round.
        wide: whether there is room for values in the cells.
    """

    name: str
    rule: str
    rows: list[HeatRow]
    wide: bool


def heat_map(scores: Scores, removed: Sequence[int]) -> HeatMap:
    """Shade the scores of each round.

    Args:
        scores: with at least one round.
        removed: the layers that went, in order; all belong to the round where there is only one.
    """
    rows = []
    for one in scores.rounds:
        goes = removed if len(scores.rounds) == 1 else one.removed
        rows.append(_heat_row(one, scores.lower_goes, goes))
    layers = max(len(row.cells) for row in rows)
    wide = layers <= TABULAR
    return HeatMap(scores.name, _rule(scores), rows, wide)


def _rule(scores: Scores) -> str:
    end = "lowest" if scores.lower_goes else "highest"
    if any(one.checked for one in scores.rounds):
        return "of those tried, outlined, the one whose absence costs least goes"
    return f"the {end} goes first"


def _heat_row(one: Round, lower_goes: bool, goes: Sequence[int]) -> HeatRow:
    levels = _levels([_worth(value, lower_goes) for value in one.values])
    losses = dict(one.checked)
    cells = []
    for layer, value in enumerate(one.values):
        cell = Cell(
            layer=layer,
            value=value,
            level=levels[layer],
            goes=layer in goes,
            loss=losses.get(layer),
        )
        cells.append(cell)
    return HeatRow(cells)


def _worth(value: Number | None, lower_goes: bool) -> Number | None:
    """Return a score such that more means that the layer matters more; None where there is none."""
    if value is None or not finite(value):
        return None
    return value if lower_goes else -value


def _levels(worth: Sequence[Number | None]) -> list[int | None]:
    """Shade one round from 0 (matters most) to 70 (matters least).

    The scale ends at the ninetieth percentile: the first and the last layer often score so high that the rest would
    look alike.
    """
    known = sorted(value for value in worth if value is not None)
    if not known:
        return [None] * len(worth)
    end = math.ceil(REST * (len(known) - 1))
    low = known[0]
    span = (known[end] - low) or 1.0
    levels: list[int | None] = []
    for value in worth:
        if value is None:
            levels.append(None)
        else:
            share = min(1.0, (value - low) / span)
            levels.append(round(DARKEST * (1 - share)))
    return levels
