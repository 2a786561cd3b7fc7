"""What of a record stands on its MLflow run: parameters, metrics and tags."""

import json
import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from tasks.errors import hide_secrets

VALUE = 6000  # characters of a parameter or tag that MLflow takes


def created_at(record: dict[str, Any]) -> int:
    """Return when a record was made, in ms since 1970."""
    return int(datetime.fromisoformat(record["created"]).timestamp() * 1000)


def params_of(record: dict[str, Any]) -> dict[str, str]:
    """Return the parameters that stand on the MLflow run of a record."""
    sections = (record.get("lineage") or {}).get("params") or {}
    return {key: _text(value)[:VALUE] for key, value in _flatten(sections)}


def metrics_of(record: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Return the metrics that stand on the MLflow run of a record, as (name, value, step)."""
    return [
        (re.sub(r"[^\w./ -]", "_", key), float(value), step)
        for key, value, step in _metrics(record)
    ]


def _metrics(record: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """Yield (name, value, step) for every number of the record that someone may want to compare between runs."""
    for row in record.get("rows", []):
        for domain, found in row.get("perplexity", {}).items():
            yield from _measured(
                f"{row['name']}/perplexity/{domain}", found["perplexity"], found.get("stderr")
            )
        for task, found in row.get("tasks", {}).items():
            yield from _measured(
                f"{row['name']}/task/{task}", found["value"], found.get("stderr")
            )
        mean = row.get("task_mean") or {}
        yield from _measured(f"{row['name']}/task_mean", mean.get("value"), mean.get("stderr"))
        yield from _numbers(
            row["name"],
            {key: value for key, value in row.items() if not isinstance(value, dict)},
        )
    yield from _numbers(
        "speed", {k: v for k, v in (record.get("speed") or {}).items() if k != "protocol"}
    )
    yield from _measured("seconds", record.get("seconds"), None)
    yield from _measured("energy_kwh", (record.get("energy") or {}).get("kwh"), None)
    for rule in record.get("gate", {}).get("rules", []):
        for prefix, key in (
            ("gate", "value"),
            ("gate_limit", "limit"),
            ("gate_passed", "passed"),
        ):
            if rule.get(key) is not None:
                yield (
                    f"{prefix}/{rule['rule']}",
                    float(rule[key]),
                    0,
                )  # a check's yes or no is 1 or 0
    for point in record.get("curve", []):
        for key in ("loss", "lr"):
            yield f"{point['stage']}/{key}", point[key], point["step"]
    yield from _layer_weights(record.get("weights") or {})


def _layer_weights(weights: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    for step, found in enumerate(weights.get("rounds", []), start=1):
        for layer, value in enumerate(found["values"]):
            if value is not None:
                yield f"layer_weight/{layer:02d}", value, step


def _measured(key: str, value: Any, stderr: Any) -> Iterator[tuple[str, float, int]]:
    for name, number in ((key, value), (f"{key}_stderr", stderr)):
        if _is_number(number):
            yield name, number, 0


def _numbers(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    for key, value in _flatten(values, f"{prefix}/", "/"):
        if _is_number(value):
            yield key, value, 0


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    )


def _flatten(
    values: dict[str, Any], prefix: str = "", separator: str = "."
) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}{separator}", separator)
        else:
            yield f"{prefix}{key}", value


def tags_of(record: dict[str, Any]) -> dict[str, str]:
    """Return what a search in the registry should find without opening the record."""
    gate, lineage = record["gate"], record.get("lineage") or {}
    passed = "passed" if gate["passed"] else "refused"
    model = record["model"]
    tags = {
        "method": record["method"],
        "model": model["name"],
        "model_revision": model.get("revision"),
        "model_digest": model.get("digest"),
        "removed": record["removed"],
        "gate": {"on": passed, "off": "off"}.get(gate["mode"], f"{gate['mode']}: {passed}"),
        "gate_failed": [rule["rule"] for rule in gate.get("rules", []) if not rule["passed"]]
        or None,
        "data_digest": lineage.get("data"),
        "git_commit": lineage.get("git_commit"),
        "git_clean": lineage.get("git_clean"),
    }
    return {key: _text(value)[:VALUE] for key, value in tags.items() if value is not None}


def _text(value: Any) -> str:
    return hide_secrets(value if isinstance(value, str) else json.dumps(value))
