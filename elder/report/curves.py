"""The loss of each training stage as a line."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from elder.record import Point, finite
from elder.report.dots import ticks

CURVE_POINTS = 240  # more than a phone has pixels to show


@dataclass(frozen=True)
class Curve:
    """One stage's loss in a box of 100 by 100.

    Attributes:
        stage: its name.
        line: points of an SVG polyline.
        ticks: (loss, distance from the top).
        lr: the highest learning rate.
        first: loss at the start of the line.
        last: loss at its end.
        start: first step.
        step: last step.
    """

    stage: str | None
    line: str
    ticks: list[tuple[float, float]]
    lr: float | None
    first: float
    last: float
    start: int
    step: int


def curves(points: Sequence[Point]) -> list[Curve]:
    """Return the loss of each training stage, thinned by averaging neighbours."""
    stages: dict[str | None, list[Point]] = {}
    for point in points:
        own = stages.setdefault(point.stage, [])
        if finite(point.loss):
            own.append(point)
    drawn = []
    for name, own in stages.items():
        if len(own) > 1:
            drawn.append(_curve(name, own))
    return drawn


def _curve(stage: str | None, points: list[Point]) -> Curve:
    losses = _thinned([point.loss for point in points])
    rates = [point.lr for point in points if finite(point.lr)]
    low = min(losses)
    high = max(losses)
    span = (high - low) or 1.0
    across = 100 / max(1, len(losses) - 1)

    def depth(loss: float) -> float:
        return 100 - 100 * (loss - low) / span

    line = []
    for index, loss in enumerate(losses):
        line.append(f"{across * index:.2f},{depth(loss):.2f}")
    marks = ticks(low, high, log=False)
    return Curve(
        stage=stage,
        line=" ".join(line),
        ticks=[(mark, depth(mark)) for mark in marks],
        lr=max(rates, default=None),
        first=losses[0],
        last=losses[-1],
        start=points[0].step,
        step=points[-1].step,
    )


def _thinned(losses: list[float]) -> list[float]:
    every = math.ceil(len(losses) / CURVE_POINTS)
    means = []
    for start in range(0, len(losses), every):
        part = losses[start : start + every]
        means.append(sum(part) / len(part))
    return means
