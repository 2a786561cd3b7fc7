"""The gate: may a candidate be registered? Each rule has a value, a limit and a sentence; missing data never pass."""

import math
from collections.abc import Mapping
from typing import Any

from elder.params import Gate

Row = Mapping[str, Any]
Rule = dict[str, Any]


def judge(
    gate: Gate, dense_row: Row, candidate_row: Row, speed: Row | None, champion: Row | None
) -> dict[str, Any]:
    """Judge a candidate against the dense model, and against the champion where there is one.

    Args:
        gate: mode and limits; a limit of None switches its rule off.
        dense_row: the record's row of the dense model.
        candidate_row: the record's row of the candidate, measured under the same protocol.
        speed: as `elder.evaluation.speed.compare` returns it, with ``generation_agrees``, ``repetition``, ``loads`` of
            `elder.evaluation.repetition`; or None.
        champion: ``version``, and ``perplexity``, ``protocol`` and ``protocol_digest`` as in a row, or ``fault``, a
            sentence that says why there are none; None where the registry has no champion.

    Returns:
        ``mode``, ``passed``, ``enforced`` (whether a failure must stop the run) and ``rules``, each with ``rule``,
        ``value`` (None where it is missing or not finite), ``limit``, ``passed`` and ``reason``.
    """
    found = (
        ()
        if gate.mode == "off"
        else _rules(gate, dense_row, candidate_row, speed or {}, champion)
    )
    rules = [rule for rule in found if rule]
    passed = all(rule["passed"] for rule in rules)
    return {"mode": gate.mode, "passed": passed, "enforced": gate.mode == "on", "rules": rules}


def _rules(
    gate: Gate, dense: Row, candidate: Row, speed: Row, champion: Row | None
) -> list[Rule | None]:
    speedup, memory = (_number(speed, "ratio", key) for key in ("prompt_speedup", "memory"))
    mean = _loss(dense, candidate, "task_mean")
    return [
        _perplexity(gate.max_perplexity_ratio_in_domain, dense, candidate, "in domain"),
        _perplexity(gate.max_perplexity_ratio_out_of_domain, dense, candidate, "out of domain"),
        _verdict(
            "task mean",
            mean,
            gate.max_task_mean_loss,
            "loss of the mean over tasks beyond its standard error",
        ),
        _worst_task(gate.max_task_loss, dense, candidate),
        _verdict(
            "prompt speed-up",
            speedup,
            gate.min_prompt_speedup,
            "dense over pruned prompt latency",
            least=True,
        ),
        _verdict("memory", memory, gate.max_memory_ratio, "pruned over dense peak memory"),
        _repetition(gate.max_repetition, speed),
        _generation(speed.get("generation_agrees")) if gate.check_generation else None,
        _loads(speed.get("loads") or {}) if gate.check_loads else None,
        beside_champion(gate.max_champion_ratio, candidate, champion),
    ]


def _perplexity(limit: float | None, dense: Row, candidate: Row, domain: str) -> Rule | None:
    value = _ratio(candidate, dense, "perplexity", domain.replace(" ", "_"), "perplexity")
    return _verdict(
        f"perplexity {domain}", value, limit, f"pruned over dense perplexity {domain}"
    )


def _worst_task(limit: float | None, dense: Row, candidate: Row) -> Rule | None:
    """Judge the task that lost most. Tasks of which less is better stay out: their scales differ from each other."""
    names = [
        name
        for name, task in (dense.get("tasks") or {}).items()
        if task.get("higher_is_better", True)
    ]
    losses = {name: _loss(dense, candidate, "tasks", name) for name in names}

    def badness(name: str) -> float:
        loss = losses[name]
        return loss if loss is not None and math.isfinite(loss) else math.inf

    worst = max(names, key=badness, default=None)
    what = (
        f"loss of the worst task, {worst}, beyond its standard error"
        if worst
        else "loss of any single task"
    )
    return _verdict("worst task", losses[worst] if worst else None, limit, what)


def _repetition(limit: float | None, speed: Row) -> Rule | None:
    before, after = (_number(speed, "repetition", kind) for kind in ("dense", "pruned"))
    value = None if before is None or after is None else after - before
    return _verdict(
        "repetition",
        value,
        limit,
        "share of repeated 4-grams in generated text, pruned less dense,",
    )


def beside_champion(limit: float | None, candidate: Row, champion: Row | None) -> Rule | None:
    """Judge the candidate beside the champion, unless their numbers cannot be compared: then it does not pass.

    Args:
        limit: the most that the candidate's perplexity out of domain may be, over the champion's; None: no rule.
        candidate: its row.
        champion: as in `judge`.
    """
    if limit is None:
        return None
    mine = {"rule": "champion", "value": None, "limit": limit}
    if champion is None:
        return mine | {
            "passed": True,
            "reason": "There is no champion yet that the candidate could be worse than.",
        }
    name = f"the champion, version {champion['version']}"
    fault = champion.get("fault") or _difference(champion, candidate)
    if fault:
        cure = "Measure as the champion was measured, or set gate.max_champion_ratio to null."
        return mine | {
            "passed": False,
            "reason": f"There is no comparison with {name}: {fault}. {cure}",
        }
    value = _ratio(candidate, champion, "perplexity", "out_of_domain", "perplexity")
    return _verdict("champion", value, limit, f"perplexity out of domain over that of {name},")


def _difference(champion: Row, candidate: Row) -> str:
    """Say in what the protocols of two evaluations differ; an empty string where their digests are the same."""
    digests = [row.get("protocol_digest") for row in (champion, candidate)]
    if None in digests:
        return f"the protocol of the {'champion' if digests[0] is None else 'candidate'} is not known"
    if digests[0] == digests[1]:
        return ""
    before, after = (dict(_leaves(row.get("protocol") or {})) for row in (champion, candidate))
    keys = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    unlike = ", ".join(
        f"{key} {_short(before.get(key))} (candidate: {_short(after.get(key))})" for key in keys
    )
    return f"it was measured under another protocol: {unlike or 'only the digests differ'}"


def _leaves(tree: Row, prefix: str = "") -> list[tuple[str, Any]]:
    """Return [(dotted key, value)] of a tree."""
    found = []
    for key, value in tree.items():
        found += (
            _leaves(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else [(f"{prefix}{key}", value)]
        )
    return found


def _short(value: Any) -> str:
    """Return a value in a few characters: of a digest, what suffices to tell it from another."""
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _loss(dense: Row, candidate: Row, *path: str) -> float | None:
    """Return how much a score fell, less the standard error of that fall: what noise alone would explain."""
    before, after = (_number(row, *path, "value") for row in (dense, candidate))
    errors = [_number(row, *path, "stderr") for row in (dense, candidate)]
    if before is None or after is None or errors[0] is None or errors[1] is None:
        return None
    return before - after - math.hypot(errors[0], errors[1])


def _ratio(above: Row, below: Row, *path: str) -> float | None:
    """Return the ratio of a number in two rows: None where one is missing, NaN where it cannot be formed."""
    numerator, denominator = (_number(row, *path) for row in (above, below))
    if numerator is None or denominator is None:
        return None
    return numerator / denominator if denominator and math.isfinite(denominator) else math.nan


def _verdict(
    rule: str, value: float | None, limit: float | None, what: str, least: bool = False
) -> Rule | None:
    """Hold a value against its limit, which is the least or the most that may be; no limit, no rule."""
    if limit is None:
        return None
    if value is None:
        passed, reason = (
            False,
            f"The {what} was not measured: measure it, or switch this rule off with null.",
        )
    elif not math.isfinite(value):
        passed, reason = False, f"The {what} is {value}, which is not a finite number."
    else:
        passed = value >= limit if least else value <= limit
        relation = (
            ("reaches" if passed else "is below")
            if least
            else ("is within" if passed else "exceeds")
        )
        bound = "least" if least else "most"
        reason = (
            f"The {what} is {value:.5g}, which {relation} the {bound} allowed, {limit:.4g}."
        )
    finite = value if value is not None and math.isfinite(value) else None
    return {"rule": rule, "value": finite, "limit": limit, "passed": passed, "reason": reason}


def _generation(agrees: bool | None) -> Rule:
    reasons = {
        True: "Greedy generation gives the same tokens with and without the key/value cache.",
        False: "Greedy generation differs with and without the key/value cache: the layers are wired wrongly.",
        None: "Generation with and without the key/value cache was not compared, and nothing passes unmeasured.",
    }
    rule = "generation with cache"
    return {
        "rule": rule,
        "value": agrees,
        "limit": True,
        "passed": agrees is True,
        "reason": reasons[agrees],
    }


def _loads(found: Row) -> Rule:
    well = found.get("ok")
    reasons = {
        True: "The saved model loads in plain transformers, in a process of its own, and its logits are finite.",
        False: f"The saved model does not work in plain transformers: {found.get('fault')}.",
        None: "Loading in plain transformers was not tried, and nothing passes unmeasured.",
    }
    return {
        "rule": "plain transformers",
        "value": well,
        "limit": True,
        "passed": well is True,
        "reason": reasons[well],
    }


def _number(tree: Any, *path: str) -> float | None:
    """Follow keys into a record; None where something on the way is missing or no number."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return float(tree) if isinstance(tree, int | float) and not isinstance(tree, bool) else None
