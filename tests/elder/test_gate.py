"""The gate: each rule passes, fails, and fails without data; the modes say what follows."""

import copy
import json
import math
from typing import Any

import pytest

from elder.gate import judge
from elder.params import Gate

DENSE = {
    "perplexity": {"in_domain": {"perplexity": 20.0}, "out_of_domain": {"perplexity": 40.0}},
    "task_mean": {"value": 0.80, "stderr": 0.03},
}
GOOD = {
    "perplexity": {"in_domain": {"perplexity": 25.0}, "out_of_domain": {"perplexity": 50.0}},
    "task_mean": {"value": 0.75, "stderr": 0.04},
}
SPEED = {"ratio": {"prompt_speedup": 1.25}}
RULES = ["perplexity in domain", "perplexity out of domain", "task mean", "prompt speed-up", "generation with cache"]


def altered(tree: dict, path: str, value: Any) -> dict:
    tree = copy.deepcopy(tree)
    *parents, last = path.split(".")
    branch = tree
    for key in parents:
        branch = branch[key]
    branch[last] = value
    return tree


def rule_of(verdict: dict, name: str) -> dict:
    return next(rule for rule in verdict["rules"] if rule["rule"] == name)


def test_a_good_candidate_passes_every_rule() -> None:
    verdict = judge(Gate(), DENSE, GOOD, SPEED, True)
    assert verdict["passed"]
    assert verdict["enforced"]
    assert [rule["rule"] for rule in verdict["rules"]] == RULES
    # 25/20 and 50/40; 0.80 - 0.75 - sqrt(0.03^2 + 0.04^2) = 0; dense over pruned latency as measured
    values = [rule["value"] for rule in verdict["rules"]]
    assert values == pytest.approx([1.25, 1.25, 0.0, 1.25, 1])
    assert all(rule["reason"].endswith(".") for rule in verdict["rules"])


@pytest.mark.parametrize(
    ("name", "path", "bad"),
    [
        ("perplexity in domain", "perplexity.in_domain.perplexity", 30.1),  # 30.1 / 20 = 1.505 > 1.5
        ("perplexity out of domain", "perplexity.out_of_domain.perplexity", 60.1),
        ("task mean", "task_mean.value", 0.699),  # 0.101 - 0.05 = 0.051 > 0.05
    ],
)
@pytest.mark.parametrize("value", ["bad", None, math.nan, math.inf, -math.inf])
def test_a_bad_missing_or_odd_number_fails_its_rule_alone(name: str, path: str, bad: float, value: Any) -> None:
    verdict = judge(Gate(), DENSE, altered(GOOD, path, bad if value == "bad" else value), SPEED, True)
    assert [rule["rule"] for rule in verdict["rules"] if not rule["passed"]] == [name]
    assert not verdict["passed"]
    json.dumps(verdict, allow_nan=False)  # what is not finite is recorded as null
    reason = rule_of(verdict, name)["reason"]
    expected = "exceeds" if value == "bad" else "was not measured" if value is None else "not a finite number"
    assert expected in reason


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, None])
def test_a_dense_perplexity_that_cannot_be_fails(value: float | None) -> None:
    verdict = judge(Gate(), altered(DENSE, "perplexity.in_domain.perplexity", value), GOOD, SPEED, True)
    assert not rule_of(verdict, "perplexity in domain")["passed"]


def test_at_the_limit_passes() -> None:
    at_limit = altered(GOOD, "perplexity.in_domain.perplexity", 30.0)
    verdict = judge(Gate(min_prompt_speedup=1.25), DENSE, at_limit, SPEED, True)
    assert verdict["passed"]


def test_task_loss_needs_both_standard_errors() -> None:
    verdict = judge(Gate(), DENSE, altered(GOOD, "task_mean.stderr", None), SPEED, True)
    assert not rule_of(verdict, "task mean")["passed"]


@pytest.mark.parametrize(
    ("speed", "words"),
    [
        ({"ratio": {"prompt_speedup": 0.99}}, "is below the least"),
        (None, "was not measured"),
        ({"ratio": {}}, "was not measured"),
        ({"ratio": {"prompt_speedup": True}}, "was not measured"),
    ],
)
def test_a_slow_or_untimed_model_fails(speed: dict | None, words: str) -> None:
    verdict = judge(Gate(), DENSE, GOOD, speed, True)
    assert not verdict["passed"]
    assert words in rule_of(verdict, "prompt speed-up")["reason"]


@pytest.mark.parametrize("agrees", [False, None])
def test_generation_must_have_been_seen_to_agree(agrees: bool | None) -> None:
    verdict = judge(Gate(), DENSE, GOOD, SPEED, agrees)
    assert not verdict["passed"]
    assert not rule_of(verdict, "generation with cache")["passed"]


def test_a_limit_of_null_switches_its_rule_off() -> None:
    gate = Gate(max_task_mean_loss=None, min_prompt_speedup=None, check_generation=False)
    verdict = judge(gate, DENSE, altered(GOOD, "task_mean", None), None, None)
    assert verdict["passed"]
    assert [rule["rule"] for rule in verdict["rules"]] == RULES[:2]


def test_no_rows_at_all_fail() -> None:
    verdict = judge(Gate(), {}, {}, {}, None)
    assert not any(rule["passed"] for rule in verdict["rules"])


def test_dry_run_records_but_does_not_enforce() -> None:
    verdict = judge(Gate(mode="dry-run"), DENSE, GOOD, None, True)
    assert not verdict["passed"]
    assert not verdict["enforced"]
    assert len(verdict["rules"]) == 5


def test_off_passes_without_rules() -> None:
    assert judge(Gate(mode="off"), {}, {}, None, None) == {
        "mode": "off",
        "passed": True,
        "enforced": False,
        "rules": [],
    }
