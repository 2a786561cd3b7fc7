"""Rows as dots on a scale: what was measured, one standard error to each side, and where that lies on a track."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elder.record import DENSE, Domain, Mean, Number, Row, TaskResult, finite

ROOM = 0.06  # left free at both ends of a track, as a share of the scale
LABEL = 24  # percent of a phone's track that a tick's label needs
ROUND = (1, 2, 5)  # what the numbers at ticks begin with
TICKS = 5  # at most
POWERS = range(-3, 16)  # of ten, that perplexities may have


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
        measured = row.perplexity.get(domain)
        if measured:
            value = RowValue(
                name=row.name,
                kind=row.kind,
                value=measured.perplexity,
                error=measured.stderr,
                tokens=row.tokens_seen,
            )
            values.append(value)
    return values


def task_values(rows: Sequence[Row], task: str) -> list[RowValue]:
    """Return the number of each row that was given a task."""
    values = []
    for row in rows:
        score = row.tasks.get(task)
        if score:
            values.append(_score_value(row, score))
    return values


def mean_values(rows: Sequence[Row]) -> list[RowValue]:
    """Return the number of each row that has a mean over tasks."""
    return [_score_value(row, row.task_mean) for row in rows if row.task_mean]


def _score_value(row: Row, score: TaskResult | Mean) -> RowValue:
    return RowValue(
        name=row.name,
        kind=row.kind,
        value=score.value,
        error=score.stderr,
        tokens=row.tokens_seen,
        metric=score.metric if isinstance(score, TaskResult) else None,
    )


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
    ends = all_ends(among or values, log)
    place = _placing(ends, log)
    dots = []
    dense = None
    for value in values:
        places = map(place, whiskers(value, log))
        dot = Dot(value, tuple(places))
        dots.append(dot)
        if value.kind == DENSE and dot.at:
            dense = dense or dot
    ticks_at = _tick_places(ends, log, place)
    return Plot(title, dots, ticks_at, dense, log)


def all_ends(values: Sequence[RowValue], log: bool) -> list[float]:
    """Return the ends of all whiskers, which the scale has to hold."""
    ends: list[float] = []
    for value in values:
        ends += whiskers(value, log)
    return ends


def _placing(ends: Sequence[float], log: bool) -> Callable[[float], float]:
    """Return what says where a value lies, in percent, so that all ends have their place."""
    scale = math.log if log else float
    low, high = 0.0, 1.0
    if ends:
        low = scale(min(ends))
        high = scale(max(ends))
    span = high - low
    room = ROOM * (span or 1.0)
    width = span + 2 * room

    def place(value: float) -> float:
        share = (scale(value) - low + room) / width
        return round(100 * share, 2)

    return place


def _tick_places(
    ends: Sequence[float], log: bool, place: Callable[[float], float]
) -> list[tuple[float, float]]:
    """Return round numbers and their places, as many as have room for their labels."""
    marks: list[tuple[float, float]] = []
    if not ends:
        return marks
    last = -math.inf
    for tick in ticks(min(ends), max(ends), log):
        at = place(tick)
        if at - last > LABEL:
            marks.append((tick, at))
            last = at
    return marks


def whiskers(one: RowValue, log: bool) -> list[float]:
    """Return the lower end, the value and the upper end, or nothing for a value that cannot be placed."""
    value = one.value
    if value is None or not finite(value) or (log and value <= 0):
        return []
    error = 0.0
    if one.error is not None and finite(one.error):
        error = one.error
    lower = value - error
    if log:
        lower = max(lower, value / 2)
    return [lower, value, value + error]


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Return two to five round numbers between two ends: evenly spaced, or 1-2-5 over a wide logarithmic range."""
    if log and high > 5 * low:
        return _wide_ticks(low, high)
    span = (high - low) or abs(high) or 1.0
    step = _round_step(span / (TICKS - 1))
    first = math.ceil(low / step)
    last = math.floor(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _wide_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two ends, thinned to five."""
    inside = []
    for power in POWERS:
        for base in ROUND:
            mark = base * 10.0**power
            if low <= mark <= high:
                inside.append(mark)
    every = math.ceil(len(inside) / TICKS)
    return inside[::every]


def _round_step(least: float) -> float:
    """Return the first of 1, 2 and 5 times a power of ten that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    for base in ROUND:
        step = base * power
        if step >= least:
            return step
    return 10 * power
