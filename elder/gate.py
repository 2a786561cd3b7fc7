"""The gate: may a candidate be registered? Each rule has a value, a limit and a sentence; missing data never pass."""

import math
from collections.abc import Mapping
from typing import Any

from elder.params import Gate

Row = Mapping[str, Any]


def judge(
    gate: Gate, dense_row: Row, candidate_row: Row, speed: Row | None, generation_ok: bool | None
) -> dict[str, Any]:
    """Judge a candidate against the dense model.

    Args:
        gate: mode and limits; a limit of None switches its rule off.
        dense_row: the record's row of the dense model.
        candidate_row: the record's row of the candidate, measured under the same protocol.
        speed: as `elder.bench.compare` returns it, or None.
        generation_ok: whether greedy generation agrees with and without the cache, or None if that was not tried.

    Returns:
        ``mode``, ``passed``, ``enforced`` (whether a failure must stop the run) and ``rules``, each with ``rule``,
        ``value`` (None where it is missing or not finite), ``limit``, ``passed`` and ``reason``.
    """
    rules = [] if gate.mode == "off" else [rule for rule in _rules(gate, dense_row, candidate_row, speed) if rule]
    if gate.mode != "off" and gate.check_generation:
        rules.append(_generation(generation_ok))
    passed = all(rule["passed"] for rule in rules)
    return {"mode": gate.mode, "passed": passed, "enforced": gate.mode == "on", "rules": rules}


def _rules(gate: Gate, dense: Row, candidate: Row, speed: Row | None) -> list[dict[str, Any] | None]:
    speedup = _number(speed, "ratio", "prompt_speedup")
    return [
        _ratio(gate.max_perplexity_ratio_in_domain, dense, candidate, "in domain"),
        _ratio(gate.max_perplexity_ratio_out_of_domain, dense, candidate, "out of domain"),
        _task_loss(gate.max_task_mean_loss, dense, candidate),
        _verdict("prompt speed-up", speedup, gate.min_prompt_speedup, "dense over pruned prompt latency", least=True),
    ]


def _ratio(limit: float | None, dense: Row, candidate: Row, domain: str) -> dict[str, Any] | None:
    path = ("perplexity", domain.replace(" ", "_"), "perplexity")
    before, after = _number(dense, *path), _number(candidate, *path)
    value = None
    if before is not None and after is not None:
        value = after / before if before and math.isfinite(before) else math.nan
    return _verdict(f"perplexity {domain}", value, limit, f"pruned over dense perplexity {domain}")


def _task_loss(limit: float | None, dense: Row, candidate: Row) -> dict[str, Any] | None:
    """Judge the loss of the mean over tasks, less the standard error of that loss: what noise alone would explain."""
    before, after = (_number(row, "task_mean", "value") for row in (dense, candidate))
    errors = [_number(row, "task_mean", "stderr") for row in (dense, candidate)]
    value = None
    if before is not None and after is not None and errors[0] is not None and errors[1] is not None:
        value = before - after - math.hypot(errors[0], errors[1])
    return _verdict("task mean", value, limit, "loss of the mean over tasks beyond its standard error")


def _verdict(rule: str, value: float | None, limit: float | None, what: str, least: bool = False) -> dict | None:
    """Hold a value against its limit, which is the least or the most that may be; no limit, no rule."""
    if limit is None:
        return None
    if value is None:
        passed, reason = False, f"The {what} was not measured: measure it, or switch this rule off with null."
    elif not math.isfinite(value):
        passed, reason = False, f"The {what} is {value}, which is not a finite number."
    else:
        passed = value >= limit if least else value <= limit
        relation = ("reaches" if passed else "is below") if least else ("is within" if passed else "exceeds")
        bound = "least" if least else "most"
        reason = f"The {what} is {value:.4g}, which {relation} the {bound} allowed, {limit:.4g}."
    finite = value if value is not None and math.isfinite(value) else None
    return {"rule": rule, "value": finite, "limit": limit, "passed": passed, "reason": reason}


def _generation(agrees: bool | None) -> dict[str, Any]:
    reasons = {
        True: "Greedy generation gives the same tokens with and without the key/value cache.",
        False: "Greedy generation differs with and without the key/value cache: the layers are wired wrongly.",
        None: "Generation with and without the key/value cache was not compared, and nothing passes unmeasured.",
    }
    rule = "generation with cache"
    return {"rule": rule, "value": agrees, "limit": True, "passed": agrees is True, "reason": reasons[agrees]}


def _number(tree: Any, *path: str) -> float | None:
    """Follow keys into a record; None where something on the way is missing or no number."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return float(tree) if isinstance(tree, int | float) and not isinstance(tree, bool) else None
