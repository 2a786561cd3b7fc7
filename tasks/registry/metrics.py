"""What of a record stands on its MLflow run: parameters, metrics and tags."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from elder.record import Json, Record, Row, Rule, Scores, plain
from elder.secrecy import hide_secrets

LONGEST_VALUE = 6000  # characters of a parameter or tag that MLflow takes
Metric = tuple[str, float, int]  # name, value, step


def created_at(record: Record) -> int:
    """Return when a record was made, in ms since 1970."""
    return int(datetime.fromisoformat(record.created).timestamp() * 1000)


def params_of(record: Record) -> dict[str, str]:
    """Return the parameters that stand on the MLflow run of a record."""
    return {key: _text(value) for key, value in _flatten(record.lineage.params)}


def metrics_of(record: Record) -> list[Metric]:
    """Return the metrics that stand on the MLflow run of a record, as (name, value, step)."""
    return [
        (re.sub(r"[^\w./ -]", "_", key), float(value), step)
        for key, value, step in _metrics(record)
    ]


def tags_of(record: Record) -> dict[str, str]:
    """Return what a search in the registry should find without opening the record."""
    model, lineage = record.model, record.lineage
    tags = {
        "method": record.method,
        "model": model.name,
        "model_revision": model.revision,
        "model_digest": model.digest,
        "model_dequantised_from": model.dequantised_from,
        "removed": record.removed,
        "gate": _verdict(record),
        "gate_failed": [rule.rule for rule in record.gate.rules if not rule.passed]
        or None,
        "data_digest": lineage.data if "data" in lineage.model_fields_set else None,
        "git_commit": lineage.git_commit,
        "git_clean": lineage.git_clean,
    }
    return {key: _text(value) for key, value in tags.items() if value is not None}


def _verdict(record: Record) -> str:
    """Return the verdict as it stands on a version: ``passed``, ``refused``, ``off``, or ``dry-run: passed``."""
    gate = record.gate
    passed = "passed" if gate.passed else "refused"
    if gate.refused:
        return passed
    if gate.mode == "off":
        return "off"
    return passed if gate.mode == "on" else f"{gate.mode}: {passed}"


def _metrics(record: Record) -> Iterator[Metric]:
    """Yield (name, value, step) for every number of the record that someone may want to compare between runs."""
    for row in record.rows:
        yield from _of_row(row)
    if record.speed:
        speed = plain(record.speed)
        speed.pop("protocol", None)
        yield from _numbers("speed", speed)
    yield from _measured("seconds", record.seconds, None)
    yield from _measured("energy_kwh", (record.energy or {}).get("kwh"), None)
    for rule in record.gate.rules:
        yield from _of_rule(rule)
    for point in record.curve:
        yield f"{point.stage}/loss", point.loss, point.step
        yield f"{point.stage}/lr", point.lr, point.step
    if record.weights:
        yield from _layer_weights(record.weights)


def _of_row(row: Row) -> Iterator[Metric]:
    for domain, measured in row.perplexity.items():
        name = f"{row.name}/perplexity/{domain}"
        yield from _measured(name, measured.perplexity, measured.stderr)
    for task, result in row.tasks.items():
        yield from _measured(f"{row.name}/task/{task}", result.value, result.stderr)
    if row.task_mean:
        yield from _measured(
            f"{row.name}/task_mean", row.task_mean.value, row.task_mean.stderr
        )
    alone = {
        key: value for key, value in plain(row).items() if not isinstance(value, dict)
    }
    yield from _numbers(row.name, alone)


def _of_rule(rule: Rule) -> Iterator[Metric]:
    pairs = (
        ("gate", rule.value),
        ("gate_limit", rule.limit),
        ("gate_passed", rule.passed),
    )
    for prefix, value in pairs:
        if value is not None:
            yield f"{prefix}/{rule.rule}", float(value), 0  # a yes or no is 1 or 0


def _layer_weights(weights: Scores) -> Iterator[Metric]:
    for step, one in enumerate(weights.rounds, start=1):
        for layer, value in enumerate(one.values):
            if value is not None:
                yield f"layer_weight/{layer:02d}", value, step


def _measured(key: str, value: Json, stderr: Json) -> Iterator[Metric]:
    for name, number in ((key, value), (f"{key}_stderr", stderr)):
        if _is_number(number):
            yield name, number, 0


def _numbers(prefix: str, values: Mapping[str, Json]) -> Iterator[Metric]:
    for key, value in _flatten(values, f"{prefix}/", "/"):
        if _is_number(value):
            yield key, value, 0


def _is_number(value: Json) -> bool:
    """Say whether MLflow takes a value as a metric: an infinite one, too, but none that is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not math.isnan(value)


def _flatten(
    values: Mapping[str, Json], prefix: str = "", separator: str = "."
) -> Iterator[tuple[str, Json]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}{separator}", separator)
        else:
            yield f"{prefix}{key}", value


def _text(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return hide_secrets(text)[:LONGEST_VALUE]
