"""Write the table of a comparison: Markdown for people, CSV for spreadsheets, JSON with everything."""

import csv
import io
from collections.abc import Callable

from elder.compare.result import value_of
from elder.compare.table import Section, TableRow
from elder.record import (
    BUDGET,
    DOMAINS,
    Json,
    Mean,
    Number,
    TaskResult,
    json_safe,
    plain,
)

LEGEND = (
    "± is one standard error: over the seeds, or over the text's blocks for a single seed. **Bold**: the lowest "
    "perplexity at equal budget; ≈: ties with it within noise, by a paired test over blocks and seeds.{tasks} "
    "*Gap closed*: share of the gap in log-perplexity, out of domain, between the dense model and the best untrained "
    "selection. Rows *over budget* saw more than {passes:g} times the calibration tokens and cannot be best.{flops}"
)
TASKS = " The highest task mean and its ties are marked by their standard errors."
FLOPS = " *TFLOPs*: all that making the model took, choice of layers, mending and writing included."
COLUMNS: dict[str, Callable[[TableRow], str]] = {
    "tokens seen": lambda row: f"{row.tokens_seen:,}",
    "written": lambda row: f"{row.tokens_generated:,}",
    "TFLOPs": lambda row: f"{row.flops / 1e12:,.1f}",
    "steps": lambda row: f"{row.optimizer_steps:,}",
    "trainable": lambda row: f"{row.trainable_parameters:,}",
    "seconds": lambda row: f"{row.seconds:,.0f}",
    "peak memory": lambda row: f"{row.peak_memory_bytes / 2**20:,.0f} MiB",
}
MOST_TASKS = (
    6  # of a group such as blimp the mean says enough here; CSV and JSON have them all
)


def title(section: Section) -> str:
    """Name a section by what was removed and what it was calibrated on."""
    share = section.layers / section.num_layers
    removed = f"{section.layers} of {section.num_layers} layers removed ({share:.0%})"
    return f"{removed}, calibrated on {section.calibration}"


def markdown(sections: list[Section], passes: float, seeds: list[int]) -> str:
    """Return all sections as Markdown, with a legend.

    Args:
        sections: the table.
        passes: the budget, for the legend.
        seeds: all that were asked for: rows that have fewer say so.
    """
    tasks = TASKS if any(section.rows[0].task_mean for section in sections) else ""
    known = any(row.flops for section in sections for row in section.rows)
    flops = FLOPS if known else ""
    legend = LEGEND.format(passes=passes, tasks=tasks, flops=flops)
    counted = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    parts = [f"{legend} Measured with {counted}: {', '.join(map(str, seeds))}."]
    for section in sections:
        parts.append(f"## {title(section)}")
        parts.append(_markdown_table(section.rows, len(seeds)))
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: list[TableRow], seeds: int) -> str:
    dense = rows[0]
    tasks = list(dense.tasks) if len(dense.tasks) <= MOST_TASKS else []
    heads = ["", "layers removed"]
    heads += [f"perplexity {name}" for name in DOMAINS.values()]
    heads += ["gap closed", *tasks]
    if dense.task_mean:
        heads.append("task mean")
    columns = _columns(rows)
    heads += columns
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for row in rows:
        cells = [_name(row, seeds), _layers(row)]
        cells += [_marked(row, domain, _perplexity(row, domain)) for domain in DOMAINS]
        cells.append(_gap_closed(row))
        cells += [_value(row.tasks.get(name)) for name in tasks]
        if dense.task_mean:
            cells.append(_marked(row, "task_mean", _value(row.task_mean)))
        made = row.kind != "dense"
        cells += [show(row) if made else "" for show in columns.values()]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(rows: list[TableRow]) -> dict[str, Callable[[TableRow], str]]:
    """Return the columns of the budget; results of older versions do not know their operations."""
    if any(row.flops for row in rows):
        return COLUMNS
    return {name: show for name, show in COLUMNS.items() if name != "TFLOPs"}


def _name(row: TableRow, seeds: int) -> str:
    """Return the row's name, and what is particular about it."""
    name = row.name
    if row.over_budget:
        name += " (over budget)"
    # the others are under way, or failed
    if row.kind != "dense" and len(row.seeds) < seeds:
        name += f" ({len(row.seeds)} of {seeds} seeds)"
    return name


def _layers(row: TableRow) -> str:
    """Return the removed layers, or how many choices there were where the seeds chose differently."""
    written = [", ".join(map(str, removed)) for removed in row.removed]
    first, *others = dict.fromkeys(written)
    return f"{first} (and {len(others)} other)" if others else first


def _perplexity(row: TableRow, domain: str) -> str:
    measured = row.perplexity[domain]
    return value_and_error(value_of(measured), measured.stderr, 2)


def _value(measured: TaskResult | Mean | None) -> str:
    if measured is None or measured.value is None:
        return ""
    return value_and_error(measured.value, measured.stderr, 3)


def value_and_error(value: Number, stderr: Number | None, digits: int) -> str:
    """Return a value with its standard error; where there is none, the value alone."""
    shown = f"{value:,.{digits}f}"
    return shown if stderr is None else f"{shown} ± {stderr:.{digits}f}"


def _marked(row: TableRow, what: str, text: str) -> str:
    mark = row.mark[what]
    if mark == "best":
        return f"**{text}**"
    return f"≈ {text}" if mark == "tie" else text


def _gap_closed(row: TableRow) -> str:
    if row.gap_closed is None:
        return ""
    share = round(row.gap_closed, 2) + 0.0  # no "-0%"
    return f"{share:.0%}"


def flat(sections: list[Section]) -> list[dict[str, Json]]:
    """Return all rows of all sections as plain values for JSON: what is not finite becomes None."""
    rows = []
    for section in sections:
        shared = {
            "layers": section.layers,
            "num_layers": section.num_layers,
            "calibration": section.calibration,
        }
        rows += [json_safe(shared | plain(row)) for row in section.rows]
    return rows


def csv_text(sections: list[Section]) -> str:
    """Return all rows as CSV, one column a number."""
    lines = []
    for section in sections:
        lines += [json_safe(_csv_row(section, row)) for row in section.rows]
    if not any(line["flops"] for line in lines):  # of an older version
        for line in lines:
            del line["flops"]
    target = io.StringIO()
    writer = csv.DictWriter(target, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return target.getvalue()


def _csv_row(section: Section, row: TableRow) -> dict[str, Json]:
    removed = [" ".join(map(str, layers)) for layers in row.removed]
    line: dict[str, Json] = {
        "layers": section.layers,
        "num_layers": section.num_layers,
        "calibration": section.calibration,
        "name": row.name,
        "kind": row.kind,
        "seeds": len(row.seeds),
        "removed": " | ".join(removed),
    }
    for domain in DOMAINS:
        measured = row.perplexity[domain]
        line[f"perplexity_{domain}"] = measured.perplexity
        line[f"perplexity_{domain}_stderr"] = measured.stderr
        line[f"mark_{domain}"] = row.mark[domain]
    line["gap_closed"] = row.gap_closed
    for name, task in row.tasks.items():
        line[name] = task.value
        line[f"{name}_stderr"] = task.stderr
    mean = row.task_mean
    line["task_mean"] = mean.value if mean else None
    line["task_mean_stderr"] = mean.stderr if mean else None
    if "task_mean" in row.mark:
        line["mark_task_mean"] = row.mark["task_mean"]
    for name in (*BUDGET, "parameters", "untrained", "over_budget"):
        line[name] = getattr(row, name)
    return line
