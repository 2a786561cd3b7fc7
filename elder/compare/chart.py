"""One picture for each section of a comparison: perplexity in and out of domain, and the mean over tasks."""

from pathlib import Path
from typing import Literal

from elder.compare.table import Section, TableRow
from elder.record import Row
from elder.report.png import comparison_png


def section_png(section: Section, path: Path) -> None:
    """Draw the rows of a section; best and tied rows stand out.

    Args:
        section: of `elder.compare.table.build`.
        path: the PNG to write.
    """
    rows = [_drawn(row) for row in section.rows]
    comparison_png(rows, path)


def _drawn(row: TableRow) -> Row:
    return Row(
        name=row.name + (" (over budget)" if row.over_budget else ""),
        kind=_kind(row),
        perplexity=row.perplexity,
        tasks=row.tasks,
        task_mean=row.task_mean,
        tokens_seen=row.tokens_seen,
    )


def _kind(row: TableRow) -> Literal["dense", "candidate", "baseline"]:
    if row.kind == "dense":
        return "dense"
    return "candidate" if row.mark["out_of_domain"] else "baseline"
