"""Rows as dots on a scale: what was measured, one standard error to each side, and where that lies on a track."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elder.record import DENSE, Domain, Mean, Number, Row, TaskResult, finite

ROOM = 0.06  # left free at both ends of a track, as a share of the scale
LABEL = 24  # percent of a phone's track that a tick's label needs
ROUND = (1, 2, 5)  # what the numbers at ticks begin with
TICKS = 5  # at most


@dataclass(frozen=True)
class RowValue:
    """One row's number.

    Attributes:
        name: of the row.
        kind: dense, candidate or baseline.
        value: what was measured; None, or not finite, where there is no number.
        error: its standard error, None where there is none.
        tokens: that the row was trained on.
        metric: of a task.
    """

    name: str
    kind: str
    value: Number | None
    error: Number | None
    tokens: int = 0
    metric: str | None = None


@dataclass(frozen=True)
class Dot:
    """A number on a track: where its lower end, value and upper end lie, in percent; nothing where it has no place."""

    of: RowValue
    at: tuple[float, ...]


@dataclass(frozen=True)
class Plot:
    """Numbers of several rows on one scale.

    Attributes:
        title: what is measured.
        dots: one for each row.
        ticks: (number, place in percent).
        dense: the dense model's dot, if it has a place.
        log: whether the scale is logarithmic.
    """

    title: str
    dots: list[Dot]
    ticks: list[tuple[float, float]]
    dense: Dot | None
    log: bool


def perplexity_values(rows: Sequence[Row], domain: Domain) -> list[RowValue]:
    """Return the number of each row that measured the perplexity of a domain."""
    values = []
    for row in rows:
        one = row.perplexity.get(domain)
        if one:
            number, error = one.perplexity, one.stderr
            values.append(RowValue(row.name, row.kind, number, error, row.tokens_seen))
    return values


def task_values(rows: Sequence[Row], task: str) -> list[RowValue]:
    """Return the number of each row that was given a task."""
    scores = [(row, row.tasks.get(task)) for row in rows]
    return [_score_value(row, score) for row, score in scores if score]


def mean_values(rows: Sequence[Row]) -> list[RowValue]:
    """Return the number of each row that has a mean over tasks."""
    return [_score_value(row, row.task_mean) for row in rows if row.task_mean]


def _score_value(row: Row, score: TaskResult | Mean) -> RowValue:
    metric = score.metric if isinstance(score, TaskResult) else None
    return RowValue(row.name, row.kind, score.value, score.stderr, row.tokens_seen, metric)


def dot_plot(
    title: str, values: Sequence[RowValue], log: bool, among: Sequence[RowValue] = ()
) -> Plot:
    """Place each value and its whiskers (one standard error) in percent of a track.

    Args:
        title: what is measured.
        values: one for each row; what is not finite gets no place.
        log: a logarithmic scale.
        among: those that set the scale, where several plots share one.
    """
    ends = [end for value in among or values for end in whiskers(value, log)]
    place = _placing(ends, log)
    dots = []
    for value in values:
        at = tuple(place(end) for end in whiskers(value, log))
        dots.append(Dot(value, at))
    dense = next((dot for dot in dots if dot.of.kind == DENSE and dot.at), None)
    return Plot(title, dots, _tick_places(ends, log, place), dense, log)


def _placing(ends: Sequence[float], log: bool) -> Callable[[float], float]:
    """Return what says where a value lies, in percent, so that all ends have their place."""
    scale = math.log if log else float
    low, high = (scale(min(ends)), scale(max(ends))) if ends else (0.0, 1.0)
    room = ROOM * ((high - low) or 1.0)
    width = high - low + 2 * room

    def place(value: float) -> float:
        return round(100 * (scale(value) - low + room) / width, 2)

    return place


def _tick_places(
    ends: Sequence[float], log: bool, place: Callable[[float], float]
) -> list[tuple[float, float]]:
    """Return round numbers and their places, as many as have room for their labels."""
    marks: list[tuple[float, float]] = []
    if not ends:
        return marks
    for tick in ticks(min(ends), max(ends), log):
        at = place(tick)
        if not marks or at - marks[-1][1] > LABEL:
            marks.append((tick, at))
    return marks


def whiskers(one: RowValue, log: bool) -> list[float]:
    """Return the lower end, the value and the upper end, or nothing for a value that cannot be placed."""
    value = one.value
    if value is None or not finite(value) or (log and value <= 0):
        return []
    error = one.error if one.error is not None and finite(one.error) else 0.0
    lower = value - error
    return [max(lower, value / 2) if log else lower, value, value + error]


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Return two to five round numbers between two ends: evenly spaced, or 1-2-5 over a wide logarithmic range."""
    if log and high > 5 * low:
        marks = [base * 10.0**power for power in range(-3, 16) for base in ROUND]
        inside = [mark for mark in marks if low <= mark <= high]
        return inside[:: math.ceil(len(inside) / TICKS)]
    raw = ((high - low) or abs(high) or 1.0) / (TICKS - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(base * power for base in (*ROUND, 10) if base * power >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]
