"""Write the table of a comparison: Markdown for people, CSV for spreadsheets, JSON with everything."""

import csv
import io
import math
from typing import Any

from elder.compare.run import BUDGET
from elder.compare.table import DOMAINS

Row = dict[str, Any]
Section = dict[str, Any]
LEGEND = (
    "± is one standard error: over the seeds, or over the text's blocks for a single seed. **Bold**: the lowest "
    "perplexity at equal budget; ≈: ties with it within noise, by a paired test over blocks and seeds.{tasks} "
    "*Gap closed*: share of the gap in log-perplexity, out of domain, between the dense model and the best untrained "
    "selection. Rows *over budget* saw more than {passes:g} times the calibration tokens and cannot be best."
)
TASKS = " The highest task mean and its ties are marked by their standard errors."
COLUMNS = ("tokens seen", "written", "steps", "trainable", "seconds", "peak memory")


def title(section: Section) -> str:
    """Name a section by what was removed and what it was calibrated on."""
    share = section["layers"] / section["num_layers"]
    of = f"{section['layers']} of {section['num_layers']} layers removed ({share:.0%})"
    return f"{of}, calibrated on {section['calibration']}"


def markdown(sections: list[Section], passes: float, seeds: list[int]) -> str:
    """Return all sections as Markdown, with a legend."""
    counted = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    tasks = TASKS if any(section["rows"][0]["task_mean"] for section in sections) else ""
    parts = [
        f"{LEGEND.format(passes=passes, tasks=tasks)} Measured with {counted}: {', '.join(map(str, seeds))}."
    ]
    for section in sections:
        parts.append(f"## {title(section)}")
        parts.append(_markdown_table(section["rows"], len(seeds)))
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: list[Row], seeds: int) -> str:
    tasks = list(rows[0]["tasks"])
    if (
        len(tasks) > 6
    ):  # a group such as blimp: its mean says enough here, CSV and JSON have them all
        tasks = []
    mean = ["task mean"] if rows[0]["task_mean"] else []
    heads = [
        "",
        "layers removed",
        *(f"perplexity {name}" for name in DOMAINS.values()),
        "gap closed",
        *tasks,
        *mean,
    ]
    lines = [[*heads, *COLUMNS], ["---", "---", *["---:"] * (len(heads) + len(COLUMNS) - 2)]]
    for row in rows:
        closed = (
            "" if row["gap_closed"] is None else f"{round(row['gap_closed'], 2) + 0.0:.0%}"
        )  # no "-0%"
        accuracies = [_value(row["tasks"].get(name), 3) for name in tasks]
        if mean:
            accuracies.append(_marked(row, "task_mean", _value(row["task_mean"], 3)))
        perplexities = [_marked(row, domain, _perplexity(row, domain)) for domain in DOMAINS]
        name = row["name"] + (" (over budget)" if row["over_budget"] else "")
        if (
            row["kind"] != "dense" and len(row["seeds"]) < seeds
        ):  # the others are under way, or failed
            name += f" ({len(row['seeds'])} of {seeds} seeds)"
        lines.append([name, _layers(row), *perplexities, closed, *accuracies, *_budget(row)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _marked(row: Row, what: str, text: str) -> str:
    return {"best": f"**{text}**", "tie": f"≈ {text}"}.get(row["mark"][what], text)


def _perplexity(row: Row, domain: str) -> str:
    found = row["perplexity"][domain]
    return _value({"value": found["perplexity"], "stderr": found["stderr"]}, 2)


def _value(found: dict[str, Any] | None, digits: int) -> str:
    if found is None:
        return ""
    error = found["stderr"]
    return f"{found['value']:,.{digits}f}" + (
        f" ± {error:.{digits}f}" if error is not None else ""
    )


def _layers(row: Row) -> str:
    """Return the removed layers, or how many choices there were where the seeds chose differently."""
    choices = list(dict.fromkeys(", ".join(map(str, removed)) for removed in row["removed"]))
    return choices[0] if len(choices) == 1 else f"{choices[0]} (and {len(choices) - 1} other)"


def _budget(row: Row) -> list[str]:
    if row["kind"] == "dense":
        return [""] * len(COLUMNS)
    counts = [
        f"{row[key]:,}"
        for key in (
            "tokens_seen",
            "tokens_generated",
            "optimizer_steps",
            "trainable_parameters",
        )
    ]
    return [*counts, f"{row['seconds']:,.0f}", f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB"]


def flat(sections: list[Section]) -> list[Row]:
    """Return all rows of all sections as plain values for JSON: what is not finite becomes None."""
    shared = ("layers", "num_layers", "calibration")
    rows = [
        {key: section[key] for key in shared} | row
        for section in sections
        for row in section["rows"]
    ]
    return [_plain(row) for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_text(sections: list[Section]) -> str:
    """Return all rows as CSV, one column a number."""
    lines = [_csv_row(row) for row in flat(sections)]
    target = io.StringIO()
    writer = csv.DictWriter(target, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return target.getvalue()


def _csv_row(row: Row) -> Row:
    line = {key: row[key] for key in ("layers", "num_layers", "calibration", "name", "kind")}
    line["seeds"] = len(row["seeds"])
    line["removed"] = " | ".join(" ".join(map(str, removed)) for removed in row["removed"])
    for domain in DOMAINS:
        line[f"perplexity_{domain}"] = row["perplexity"][domain]["perplexity"]
        line[f"perplexity_{domain}_stderr"] = row["perplexity"][domain]["stderr"]
        line[f"mark_{domain}"] = row["mark"][domain]
    line["gap_closed"] = row["gap_closed"]
    for name, found in [*row["tasks"].items(), ("task_mean", row["task_mean"])]:
        line[name], line[f"{name}_stderr"] = (
            (found["value"], found["stderr"]) if found else (None, None)
        )
    if "task_mean" in row["mark"]:
        line["mark_task_mean"] = row["mark"]["task_mean"]
    return line | {key: row[key] for key in (*BUDGET, "parameters", "untrained", "over_budget")}
