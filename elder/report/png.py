"""One PNG for a README: perplexity and mean over tasks of all rows. Only this needs matplotlib."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elder.record import BASELINE, CANDIDATE, DENSE, DOMAINS, Row
from elder.report.dots import (
    RowValue,
    all_ends,
    mean_values,
    perplexity_values,
    ticks,
    whiskers,
)

COLOURS = {DENSE: "#15181c", CANDIDATE: "#2b59c3", BASELINE: "#7a8491"}
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#c9ced5",
    "text.color": "#15181c",
}
DOTS_PER_INCH = 160
LONGEST_LINE = 36  # characters of a row's name
A_ROW, A_LINE = 0.38, 0.18  # inches at least


@dataclass(frozen=True)
class Panel:
    """One measure of all rows that have it."""

    title: str
    values: list[RowValue]
    log: bool

    @property
    def names(self) -> list[str]:
        """Return the names of its rows."""
        return [in_lines(value.name) for value in self.values]


def comparison_png(rows: Sequence[Row], path: Path) -> None:
    """Draw perplexity and task mean of the dense model, candidate and baselines, one standard error to each side.

    Args:
        rows: the rows of a record.
        path: the PNG to write; its folder is made.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _panels(rows)
    width = max(9, 3 + 3 * len(panels))
    lines = max((in_lines(row.name).count("\n") + 1 for row in rows), default=1)
    size = width, 1.1 + max(A_ROW, A_LINE * lines) * len(rows)
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.1)
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout=layout)
        columns = max(1, len(panels))
        places = figure.subplots(1, columns, squeeze=False)[0]
        for axes, panel in zip(places, panels, strict=False):
            _draw(axes, panel)
            first = panels[0]
            if panel is not first and panel.names == first.names:
                axes.set_yticklabels([])  # the rows are those of the first panel
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            path, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.15
        )


def in_lines(name: str) -> str:
    """Break a long name where its parameters begin, and between them."""
    lines = [""]
    for part in re.split(r"(?<=[,\[])", name):
        if lines[-1] and len(lines[-1] + part) > LONGEST_LINE:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _panels(rows: Sequence[Row]) -> list[Panel]:
    panels = []
    for domain, label in DOMAINS.items():
        values = perplexity_values(rows, domain)
        panels.append(Panel(f"Perplexity {label}", values, log=True))
    panels.append(Panel("Mean over tasks", mean_values(rows), log=False))
    return [panel for panel in panels if panel.values]


def _draw(axes: Any, panel: Panel) -> None:
    """Draw one measure: dots with whiskers, values at the right, the dense model as a dotted line."""
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", pad=10)
    _scale(axes, panel)
    for index, value in enumerate(panel.values):
        _draw_value(axes, index, value, panel.log)
    axes.set_yticks(range(len(panel.values)), panel.names)
    axes.set_ylim(len(panel.values) - 0.4, -0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, labelcolor="#3c444e")
    axes.grid(axis="x", color="#eceef1", linewidth=0.8)
    axes.set_axisbelow(True)


def _scale(axes: Any, panel: Panel) -> None:
    """Set the scale so that all whiskers have their place on it."""
    ends = all_ends(panel.values, panel.log) or [1.0, 2.0]
    low = min(ends)
    high = max(ends)
    axes.set_xscale("log" if panel.log else "linear")
    if panel.log:
        axes.set_xlim(low * 0.97, high * 1.03)
    else:
        room = 0.05 * (high - low)
        axes.set_xlim(low - room, high + room)
    axes.set_xticks(ticks(low, high, panel.log))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _draw_value(axes: Any, index: int, one: RowValue, log: bool) -> None:
    ends = whiskers(one, log)
    colour = COLOURS[one.kind]
    text = "not finite"
    if ends:
        lower, value, upper = ends
        digits = 1 if log else 3
        text = f"{value:,.{digits}f}"
        axes.plot(
            [lower, upper],
            [index, index],
            color=colour,
            linewidth=2,
            alpha=0.45,
            solid_capstyle="butt",
        )
        axes.plot([value], [index], "o", color=colour, markersize=7)
        if one.kind == DENSE:
            axes.axvline(
                value, color=colour, linewidth=0.9, linestyle=":", alpha=0.6, zorder=0
            )
    place = (1.02, index)
    axes.annotate(
        text, place, xycoords=("axes fraction", "data"), va="center", color=colour
    )
