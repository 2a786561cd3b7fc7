"""One HTML file that shows a run: what went, what it cost, what it won, and where every number comes from.

The page carries its style and its charts itself: it asks nothing of a network and runs no script. Its charts are tables
whose rows hold a dot on a track, so they reflow on a phone, follow the reader's colour scheme and can be read aloud.
``elder.report.card`` writes the same content as a model card.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elder.files import write_text
from elder.record import DOMAINS, CompressionRecord, Row
from elder.report.dots import (
    Plot,
    dot_plot,
    mean_values,
    perplexity_values,
    task_values,
)
from elder.report.summary import summarise
from elder.report.words import as_yaml, compact, duration, number, plus_minus, size

if TYPE_CHECKING:
    from jinja2 import Environment


def write_report(record: CompressionRecord, path: Path) -> None:
    """Write the report of a run as one self-contained HTML file.

    Args:
        record: of a flow, or of ``elder compress`` alone; a part that lacks leaves its section out.
        path: the file to write; its folder is made.
    """
    told = summarise(record)
    template = environment().get_template("report.html.j2")
    page = template.render(
        vars(told), perplexities=_perplexities(told.rows), tasks=_tasks(told.rows)
    )
    write_text(path, page)


def environment() -> "Environment":
    """Return the templates of this package; those of HTML escape every value."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    templates = Environment(
        loader=PackageLoader("elder.report"),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "num": number,
        "short": compact,
        "size": size,
        "time": duration,
        "plus_minus": plus_minus,
        "yaml": as_yaml,
    }
    return templates


def _perplexities(rows: Sequence[Row]) -> list[Plot]:
    """Return a dot plot for each domain that any row measured, on a logarithmic scale."""
    plots = []
    for domain, label in DOMAINS.items():
        points = perplexity_values(rows, domain)
        if points:
            plots.append(dot_plot(f"Perplexity {label}", points, log=True))
    return plots


def _tasks(rows: Sequence[Row]) -> list[Plot]:
    """Return a dot plot for the mean over tasks and for each task, all on one linear scale."""
    names = list(dict.fromkeys(name for row in rows for name in row.tasks))
    titled = [("Mean over tasks", mean_values(rows))] if len(names) > 1 else []
    titled += [(name, task_values(rows, name)) for name in names]
    among = [point for _, points in titled for point in points]
    return [
        dot_plot(title, points, log=False, among=among)
        for title, points in titled
        if points
    ]
