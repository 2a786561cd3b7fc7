"""One picture for each section of a comparison: perplexity in and out of domain, and the mean over tasks."""

from pathlib import Path
from typing import Any

from elder.report.plot import comparison_png


def section_png(section: dict[str, Any], path: Path) -> None:
    """Draw the rows of a section; best and tied rows stand out.

    Args:
        section: of `elder.compare.table.build`.
        path: the PNG to write.
    """
    rows = [row | {"kind": _kind(row), "name": _name(row)} for row in section["rows"]]
    comparison_png(rows, path)


def _kind(row: dict[str, Any]) -> str:
    if row["kind"] == "dense":
        return "dense"
    return "candidate" if row["mark"]["out_of_domain"] else "baseline"


def _name(row: dict[str, Any]) -> str:
    return row["name"] + (" (over budget)" if row["over_budget"] else "")
