"""One HTML file that shows a run: what went, what it cost, what it won, and where every number comes from.

The page carries its style and its charts itself: it asks nothing of a network and runs no script. Its charts are tables
whose rows hold a dot on a track, so they reflow on a phone, follow the reader's colour scheme and can be read aloud.
``elder.report.card`` writes the same content as a model card and shares the helpers here.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from elder.report.plot import (
    DOMAINS,
    curves,
    dot_plot,
    finite,
    heat_map,
    perplexity_points,
    task_points,
)

if TYPE_CHECKING:
    from jinja2 import Environment

Record = dict[str, Any]


def write_report(record: Record, path: Path) -> None:
    """Write the report of a run as one self-contained HTML file.

    Args:
        record: the record that the flow builds. Only ``model`` and ``removed`` must be there; a part that lacks leaves
            its section out.
        path: the file to write; its folder is made.
    """
    context = summary(record)
    context |= {
        "perplexities": _perplexities(context["rows"]),
        "tasks": _tasks(context["rows"]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        environment().get_template("report.html.j2").render(context), encoding="utf-8"
    )


def environment() -> "Environment":
    """Return the templates of this package; those of HTML escape every value."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    escape = select_autoescape(["html.j2"])
    found = Environment(
        loader=PackageLoader("elder.report"),
        autoescape=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "num": number,
        "short": compact,
        "size": size,
        "time": duration,
        "either": either,
        "yaml": as_yaml,
    }
    return found


def summary(record: Record) -> Record:
    """Return what the report and the card have in common.

    Returns:
        ``record`` (as JSON would bring it back), ``rows``, ``dense`` and ``candidate`` (rows or None), ``layers``
        (index, place in the order of removal or None), ``parameters`` (before, after), ``maps`` and ``curves`` (as
        ``elder.report.plot`` draws them) and ``headline`` (the perplexities that matter most, or None).
    """
    record = json.loads(json.dumps(record, default=str))
    rows, removed = record.get("rows") or [], record.get("removed") or []
    total = record["model"].get("num_layers") or len(removed) + len(record.get("kept") or [])
    first = {
        kind: next((row for row in rows if row["kind"] == kind), None)
        for kind in ("dense", "candidate")
    }
    before, after = (first[kind] or {} for kind in ("dense", "candidate"))
    return first | {
        "record": record,
        "rows": rows,
        "layers": [
            (layer, removed.index(layer) + 1 if layer in removed else None)
            for layer in range(total)
        ],
        "parameters": (
            record.get("parameters_before")
            or before.get("parameters")
            or record["model"].get("parameters"),
            record.get("parameters_after") or after.get("parameters"),
        ),
        "maps": _maps(record),
        "curves": curves(record.get("curve") or []),
        "headline": next(
            (found for domain in reversed(DOMAINS) if (found := _headline(rows, domain))), None
        ),
    }


def _headline(rows: list[Record], domain: str) -> Record | None:
    """Set the candidate's perplexity beside the dense model's; say how much of the best baseline's gap it closes."""
    points = [
        point
        for point in perplexity_points(rows, domain)
        if finite(point["value"]) and point["value"] > 0
    ]
    values = {
        kind: [p for p in points if p["kind"] == kind]
        for kind in ("dense", "candidate", "baseline")
    }
    if not (values["dense"] and values["candidate"]):
        return None
    dense, pruned = values["dense"][0]["value"], values["candidate"][0]["value"]
    found = {
        "domain": DOMAINS[domain],
        "dense": dense,
        "pruned": pruned,
        "ratio": pruned / dense,
    }
    best = min(values["baseline"], key=lambda point: point["value"], default=None)
    if best and best["value"] > dense:
        found |= {
            "best": best,
            "closed": math.log(best["value"] / pruned) / math.log(best["value"] / dense),
        }
    return found


def _maps(record: Record) -> list[Record]:
    """Return one heat map for the scores and one for layer weights that the method learnt apart from them."""
    scores, weights = record.get("scores") or {}, record.get("weights") or {}
    found = (
        [scores]
        if weights.get("rounds") == scores.get("rounds")
        else [scores, {"name": "layer weight"} | weights]
    )
    return [heat_map(scored, record["removed"]) for scored in found if scored.get("rounds")]


def _perplexities(rows: list[Record]) -> list[Record]:
    """Return a dot plot for each domain that any row measured, on a logarithmic scale."""
    found = [
        (f"Perplexity {DOMAINS[domain]}", perplexity_points(rows, domain)) for domain in DOMAINS
    ]
    return [dot_plot(title, points, log=True) for title, points in found if points]


def _tasks(rows: list[Record]) -> list[Record]:
    """Return a dot plot for the mean over tasks and for each task, all on one linear scale."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("tasks") or {}))
    found = [("Mean over tasks", task_points(rows, None))] if len(names) > 1 else []
    found += [(name, task_points(rows, name)) for name in names]
    among = [point for _, points in found for point in points]
    return [
        dot_plot(title, points, log=False, among=among) for title, points in found if points
    ]


def number(value: Any, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits and thousands set apart; anything else as words."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    if not 1e-2 <= abs(value) < 1e9:
        return f"{value:.{digits}g}"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def compact(value: Any, digits: int = 3) -> str:
    """Return a number in few characters, such as ``5.73 M``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if finite(value) and abs(value) >= factor:
            return f"{number(value / min(factor, 1e3) if unit == 'k' else value / factor, digits)} {unit}"
    return number(value, digits)


def size(value: Any) -> str:
    """Return bytes in binary units."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if finite(value) and value >= 1024**power:
            return f"{number(value / 1024**power, 3)} {unit}"
    return f"{value} B" if finite(value) else "–"


def duration(value: Any) -> str:
    """Return seconds in the two largest units."""
    if not finite(value) or value < 60:
        return f"{value:.1f} s" if finite(value) else "–"
    minutes, seconds = divmod(round(value), 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {seconds} s"
    )


def either(value: Any, error: Any) -> str:
    """Return ``value ± error`` with the two digits of the error that mean something, such as ``48.41 ± 0.62``."""
    if not (finite(value) and finite(error) and error > 0):
        return number(value)
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:,.{places}f} ± {error:,.{places}f}"


def as_yaml(tree: Any) -> str:
    """Return parameters as YAML, in their own order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100).strip()
