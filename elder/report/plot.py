"""What is drawn: the geometry of the report's charts, in percent of their boxes, and one PNG for a README.

The functions return plain lists and dicts that a template turns into HTML or SVG; only ``comparison_png`` needs
matplotlib.
"""

import math
from pathlib import Path
from typing import Any

DOMAINS = {"in_domain": "in domain", "out_of_domain": "out of domain"}
CURVE_POINTS = 240  # more than a phone has pixels to show
TABULAR = 16  # layers up to which a heat map prints its values
COLOURS = {"dense": "#15181c", "candidate": "#2b59c3", "baseline": "#7a8491"}


def finite(value: Any) -> bool:
    """Say whether a value is a number that can be placed on an axis."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )


def perplexity_points(rows: list[dict[str, Any]], domain: str) -> list[dict[str, Any]]:
    """Return name, kind, value and standard error of each row that measured ``domain``."""
    measured = [(row, (row.get("perplexity") or {}).get(domain)) for row in rows]
    return [_point(row, found, "perplexity") for row, found in measured if found]


def task_points(rows: list[dict[str, Any]], task: str | None) -> list[dict[str, Any]]:
    """Return name, kind, value and standard error of each row for one task, or for the mean where ``task`` is None."""
    measured = [
        (row, (row.get("tasks") or {}).get(task) if task else row.get("task_mean"))
        for row in rows
    ]
    return [
        _point(row, found, "value") | {"metric": found.get("metric")}
        for row, found in measured
        if found
    ]


def _point(row: dict[str, Any], found: dict[str, Any], key: str) -> dict[str, Any]:
    values = {
        "value": found.get(key),
        "error": found.get("stderr"),
        "tokens": row.get("tokens_seen"),
    }
    return {"name": row["name"], "kind": row["kind"]} | values


def dot_plot(
    title: str, points: list[dict[str, Any]], log: bool, among: list | None = None
) -> dict[str, Any]:
    """Place each value and its whiskers (one standard error) in percent of a track.

    Args:
        title: what is measured.
        points: ``name``, ``kind``, ``value`` and ``error`` of each row; a value that is not finite gets no place.
        log: a logarithmic scale.
        among: the points that set the scale, where several plots share one.
    """
    ends = [end for point in among or points for end in whiskers(point, log)]
    scale = math.log if log else float
    low, high = (scale(min(ends)), scale(max(ends))) if ends else (0.0, 1.0)
    room = 0.06 * ((high - low) or 1.0)

    def place(value: float) -> float:
        return round(100 * (scale(value) - low + room) / (high - low + 2 * room), 2)

    placed = [point | {"at": [place(end) for end in whiskers(point, log)]} for point in points]
    dense = next((point for point in placed if point["kind"] == "dense" and point["at"]), None)
    marks: list[tuple[float, float]] = []
    for tick in ticks(min(ends), max(ends), log) if ends else []:
        if (
            not marks or place(tick) - marks[-1][1] > 24
        ):  # a label needs that much of a phone's track
            marks.append((tick, place(tick)))
    return {"title": title, "points": placed, "ticks": marks, "dense": dense, "log": log}


def whiskers(point: dict[str, Any], log: bool) -> list[float]:
    """Return the lower end, the value and the upper end, or nothing for a value that cannot be placed."""
    value, error = point["value"], point["error"] if finite(point["error"]) else 0.0
    if not finite(value) or (log and value <= 0):
        return []
    return [max(value - error, value / 2) if log else value - error, value, value + error]


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Return two to five round numbers between two ends: evenly spaced, or 1-2-5 over a wide logarithmic range."""
    if log and high > 5 * low:
        marks = [base * 10.0**power for power in range(-3, 16) for base in (1, 2, 5)]
        inside = [mark for mark in marks if low <= mark <= high]
        return inside[:: math.ceil(len(inside) / 5)]
    raw = ((high - low) or abs(high) or 1.0) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(base * power for base in (1, 2, 5, 10) if base * power >= raw)
    return [
        round(index * step, 12)
        for index in range(math.ceil(low / step), math.floor(high / step) + 1)
    ]


def heat_map(found: dict[str, Any], removed: list[int]) -> dict[str, Any]:
    """Shade the scores of each round.

    Args:
        found: ``name``, ``lower_goes`` and ``rounds`` of the record's scores or weights.
        removed: the layers that went, in order; all belong to the round where there is only one.
    """
    rounds, lower = found["rounds"], found.get("lower_goes", True)
    rows = [_heat_row(turn, lower, removed if len(rounds) == 1 else None) for turn in rounds]
    wide = max(len(row["cells"]) for row in rows) <= TABULAR
    rule = f"the {'lowest' if lower else 'highest'} goes first"
    if any(turn.get("checked") for turn in rounds):
        rule = f"of the {'lowest' if lower else 'highest'} few, outlined, the one whose absence costs least goes"
    return {
        "name": found.get("name") or "layer weight",
        "rule": rule,
        "rows": rows,
        "wide": wide,
    }


def _heat_row(
    turn: dict[str, Any], lower_goes: bool, removed: list[int] | None
) -> dict[str, Any]:
    """Shade one round from 0 (matters most) to 70 (matters least), which leaves full colour to what is removed.

    The scale ends at the ninetieth percentile: the first and the last layer often score so high that the rest would
    look alike.
    """
    goes = turn.get("removed") if removed is None else removed
    goes = goes if isinstance(goes, list) else [goes]
    worth = [
        (value if lower_goes else -value) if finite(value) else None for value in turn["values"]
    ]
    known = sorted(value for value in worth if value is not None)
    low, high = (known[0], known[math.ceil(0.9 * (len(known) - 1))]) if known else (0.0, 0.0)
    span = (high - low) or 1.0
    levels = [
        None if value is None else round(70 * (1 - min(1.0, (value - low) / span)))
        for value in worth
    ]
    losses = dict(turn.get("checked") or [])
    cells = [
        {
            "layer": layer,
            "value": value,
            "level": level,
            "goes": layer in goes,
            "loss": losses.get(layer),
        }
        for layer, (value, level) in enumerate(zip(turn["values"], levels, strict=True))
    ]
    return {"removed": goes, "cells": cells}


def curves(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the loss of each training stage as a line in a box of 100 by 100, thinned by averaging neighbours."""
    stages = dict.fromkeys(point["stage"] for point in points)
    own = {
        name: [p for p in points if p["stage"] == name and finite(p["loss"])] for name in stages
    }
    return [_curve(name, found) for name, found in own.items() if len(found) > 1]


def _curve(stage: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    every = math.ceil(len(points) / CURVE_POINTS)
    bins = [points[start : start + every] for start in range(0, len(points), every)]
    losses = [sum(point["loss"] for point in part) / len(part) for part in bins]
    low, span = min(losses), (max(losses) - min(losses)) or 1.0
    across, last = 100 / max(1, len(losses) - 1), points[-1]["step"]
    line = [
        f"{across * index:.2f},{100 - 100 * (loss - low) / span:.2f}"
        for index, loss in enumerate(losses)
    ]
    marks = [
        (tick, 100 - 100 * (tick - low) / span) for tick in ticks(low, max(losses), log=False)
    ]
    rate = max((point["lr"] for point in points if finite(point.get("lr"))), default=None)
    ends = {"first": losses[0], "last": losses[-1], "start": points[0]["step"], "step": last}
    return {"stage": stage, "line": " ".join(line), "ticks": marks, "lr": rate} | ends


def comparison_png(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw perplexity and task mean of the dense model, candidate and baselines, one standard error to each side.

    Args:
        rows: the rows of a record.
        path: the PNG to write; its folder is made.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    domains = [domain for domain in DOMAINS if perplexity_points(rows, domain)]
    style: Any = {
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.edgecolor": "#c9ced5",
        "text.color": "#15181c",
    }
    with matplotlib.rc_context(style):
        drawn = [
            (f"Perplexity {DOMAINS[domain]}", perplexity_points(rows, domain), True)
            for domain in domains
        ]
        if task_points(rows, None):
            drawn.append(("Mean over tasks", task_points(rows, None), False))
        figure = Figure(
            figsize=(max(9, 3 + 3 * len(drawn)), 1.1 + 0.38 * len(rows)),
            dpi=160,
            layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1),
        )
        panels = figure.subplots(1, max(1, len(drawn)), squeeze=False)[0]
        for axes, (title, points, log) in zip(panels, drawn, strict=False):
            _panel(axes, points, title, log)
            if axes is not panels[0] and [p["name"] for p in points] == [
                p["name"] for p in drawn[0][1]
            ]:
                axes.set_yticklabels([])  # the rows are those of the first panel
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            path, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.15
        )


def _panel(axes: Any, points: list[dict[str, Any]], title: str, log: bool) -> None:
    """Draw one measure: dots with whiskers, values at the right, the dense model as a dotted line."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=10)
    drawn = [end for point in points for end in whiskers(point, log)] or [1.0, 2.0]
    low, high = min(drawn), max(drawn)
    axes.set_xscale("log" if log else "linear")
    room = 0.05 * (high - low)
    axes.set_xlim(*((low * 0.97, high * 1.03) if log else (low - room, high + room)))
    axes.set_xticks(ticks(low, high, log))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    for index, point in enumerate(points):
        ends, colour = whiskers(point, log), COLOURS[point["kind"]]
        axes.plot(
            ends[::2],
            [index] * len(ends[::2]),
            color=colour,
            linewidth=2,
            alpha=0.45,
            solid_capstyle="butt",
        )
        axes.plot(ends[1:2], [index] * len(ends[1:2]), "o", color=colour, markersize=7)
        text = f"{point['value']:,.{1 if log else 3}f}" if ends else "not finite"
        axes.annotate(
            text, (1.02, index), xycoords=("axes fraction", "data"), va="center", color=colour
        )
        if point["kind"] == "dense" and ends:
            axes.axvline(
                ends[1], color=colour, linewidth=0.9, linestyle=":", alpha=0.6, zorder=0
            )
    axes.set_yticks(range(len(points)), [point["name"] for point in points])
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelcolor="#3c444e")
    axes.grid(axis="x", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)
