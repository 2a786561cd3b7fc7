"""From the measurements of a comparison to its table: means over seeds, ties, the gap closed, and what is best.

Rows are evaluated on the same blocks, so two rows are compared in pairs, block by block: see `tie`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from elder.compare.rows import FLOORS
from elder.compare.run import BUDGET, DENSE

DOMAINS = {"in_domain": "in domain", "out_of_domain": "out of domain"}
SORTED_BY = "out_of_domain"
NOISE = 2.0  # standard errors below which a paired difference is called a tie

Result = dict[str, Any]


def build(dense: Result, results: Sequence[Result], passes: float) -> list[dict[str, Any]]:
    """Return the sections of the table, one for each number of removed layers and calibration text.

    Args:
        dense: the dense model's result.
        results: those of all rows and seeds, as `elder.compare.run.read_result` gives them.
        passes: the budget: tokens that may pass through training, over the tokens of the calibration blocks.

    Returns:
        ``layers``, ``num_layers``, ``calibration`` and ``rows``: dense on top, then by perplexity out of domain,
        floors at the bottom.
    """
    groups: dict[tuple[int, str], dict[str, list[Result]]] = {}
    for result in results:
        group = groups.setdefault((len(result["removed"]), result["calibration"]), {})
        group.setdefault(result["name"], []).append(result)
    return [
        {
            "layers": layers,
            "num_layers": dense["num_layers"],
            "calibration": calibration,
            "rows": _section(dense, groups[layers, calibration], passes),
        }
        for layers, calibration in sorted(groups)
    ]


def _section(
    dense: Result, group: dict[str, list[Result]], passes: float
) -> list[dict[str, Any]]:
    rows = [_row(name, results, passes) for name, results in group.items()]
    rows.sort(key=lambda row: (row["name"] in FLOORS, row["perplexity"][SORTED_BY]["nll"]))
    rows = [_row(DENSE, [dense], passes), *rows]
    _add_gap_closed(rows)
    for domain in DOMAINS:
        _add_marks(rows, group, domain)
    if rows[0]["task_mean"]:
        _mark_task_means(rows)
    return rows


def _row(name: str, results: list[Result], passes: float) -> dict[str, Any]:
    """Sum up one row over its seeds; budget figures are means, memory and trainable parameters the largest."""
    kind = DENSE if name == DENSE else "floor" if name in FLOORS else "row"
    spent = {key: [result[key] for result in results] for key in BUDGET}
    tokens = max(spent["tokens_seen"])
    compensated = (results[0].get("recipe", {}).get("compensate") or {}).get(
        "method", "none"
    ) != "none"
    means = [result["task_mean"] for result in results]
    return {
        "name": name,
        "kind": kind,
        "seeds": [result["seed"] for result in results] if kind != DENSE else [],
        "removed": [result["removed"] for result in results],
        "perplexity": {
            d: _perplexity_over_seeds([result["perplexity"][d] for result in results])
            for d in DOMAINS
        },
        "tasks": _tasks_over_seeds([result["tasks"] for result in results]),
        "task_mean": _value_over_seeds(means) if all(means) else None,
        "tokens_seen": round(_mean(spent["tokens_seen"])),
        "tokens_generated": round(_mean(spent["tokens_generated"])),
        "optimizer_steps": round(_mean(spent["optimizer_steps"])),
        "trainable_parameters": max(spent["trainable_parameters"]),
        "seconds": round(_mean(spent["seconds"]), 1),
        "peak_memory_bytes": max(spent["peak_memory_bytes"]),
        "parameters": results[0]["parameters"],
        "untrained": kind != DENSE and tokens == 0 and not compensated,
        "over_budget": tokens > passes * max(result.get("tokens", 0) for result in results),
    }


def _perplexity_over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the perplexity of the mean loss; its error is that over seeds, or the evaluation's for a single one."""
    nll = _mean([one["nll"] for one in found])
    if not math.isfinite(nll):
        return {
            "perplexity": math.inf,
            "stderr": None,
            "nll": math.inf,
            "tokens": found[0]["tokens"],
        }
    value = _exp(nll)
    stderr = (
        found[0]["stderr"] if len(found) == 1 else value * _error([one["nll"] for one in found])
    )
    return {"perplexity": value, "stderr": stderr, "nll": nll, "tokens": found[0]["tokens"]}


def _tasks_over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: found[0][name] | _value_over_seeds([one[name] for one in found])
        for name in found[0]
    }


def _value_over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    values = [one["value"] for one in found]
    return {
        "value": _mean(values),
        "stderr": found[0]["stderr"] if len(found) == 1 else _error(values),
    }


def _add_gap_closed(rows: list[dict[str, Any]]) -> None:
    """Add the share of the gap in log-perplexity to the dense model that the best untrained selection leaves."""
    dense = rows[0]["perplexity"][SORTED_BY]["nll"]
    untrained = [row["perplexity"][SORTED_BY]["nll"] for row in rows if row["untrained"]]
    gap = min(untrained) - dense if untrained else 0.0
    for row in rows:
        left = row["perplexity"][SORTED_BY]["nll"] - dense
        known = row["kind"] != DENSE and gap > 0 and math.isfinite(left)
        row["gap_closed"] = 1 - left / gap if known else None


def _add_marks(rows: list[dict[str, Any]], group: dict[str, list[Result]], domain: str) -> None:
    """Mark the best row within the budget, and the rows within the budget that tie with it."""
    for row in rows:
        row.setdefault("mark", {})[domain] = None
    fair = _within_budget(rows)
    if not fair:
        return
    best = min(fair, key=lambda row: row["perplexity"][domain]["nll"])
    best["mark"][domain] = "best"
    for row in fair:
        if row is not best and tie(group[best["name"]], group[row["name"]], domain):
            row["mark"][domain] = "tie"


def _mark_task_means(rows: list[dict[str, Any]]) -> None:
    """Mark the highest mean over tasks within the budget, and those less than two standard errors below it.

    The error is that of the difference of two independent means: answers are not kept item by item, so there is no
    paired test, and more rows tie than one would show.
    """
    for row in rows:
        row["mark"]["task_mean"] = None
    fair = [row for row in _within_budget(rows) if row["task_mean"]]
    if not fair:
        return
    best = max(fair, key=lambda row: row["task_mean"]["value"])
    for row in fair:
        below = best["task_mean"]["value"] - row["task_mean"]["value"]
        noise = math.hypot(*(one["task_mean"]["stderr"] or 0.0 for one in (best, row)))
        if below == 0 or below < NOISE * noise:
            row["mark"]["task_mean"] = "tie"
    best["mark"]["task_mean"] = "best"


def _within_budget(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] != DENSE and not row["over_budget"]]


def tie(first: Iterable[Result], second: Iterable[Result], domain: str) -> bool:
    """Say whether two rows differ by less than noise: a paired test over blocks and seeds.

    With d[s, b] the difference of the two losses on block b for seed s, over the seeds that both rows have, the rows
    tie if |mean d| < 2 SE. For one seed SE = sd_b(d) / sqrt(blocks). For several, noise of the text and noise of the
    training add up: SE^2 = var_b(mean_s d) / blocks + var_s(mean_b d) / seeds.
    """
    by_seed = {result["seed"]: result["losses"][domain] for result in second}
    pairs = [
        (result["losses"][domain], by_seed[result["seed"]])
        for result in first
        if result["seed"] in by_seed
    ]
    if not pairs or any(not np.isfinite(losses).all() for pair in pairs for losses in pair):
        return False
    differences = np.stack([b - a for a, b in pairs])  # (seeds, blocks)
    seeds, blocks = differences.shape
    if blocks < 2:
        return False
    square = differences.mean(axis=0).var(ddof=1) / blocks
    if seeds > 1:
        square += differences.mean(axis=1).var(ddof=1) / seeds
    return bool(abs(differences.mean()) < NOISE * math.sqrt(square)) or not differences.any()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _error(values: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
