"""The gate: each rule passes, fails, and fails without data; the modes say what follows."""

import copy
import json
import math
from typing import Any

import pytest

from elder.evaluation.gate import judge as judge_typed
from elder.params import Gate
from elder.record import Champion, Row, Rule, Speed, Verdict, plain

PROTOCOL = {"texts": {"out_of_domain": "c" * 64}, "limit": None, "device": "cpu"}
DENSE = {
    "name": "dense",
    "kind": "dense",
    "perplexity": {
        "in_domain": {"perplexity": 20.0},
        "out_of_domain": {"perplexity": 40.0},
    },
    "task_mean": {"value": 0.80, "stderr": 0.03},
    "tasks": {
        "agreement": {"metric": "acc", "value": 0.9, "stderr": 0.03},
        "islands": {"metric": "acc", "value": 0.7, "stderr": 0.05},
        "bits": {
            "metric": "acc",
            "value": 1.0,
            "stderr": 0.1,
            "higher_is_better": False,
        },
    },
    "protocol": PROTOCOL,
    "protocol_digest": "d" * 64,
}
GOOD = {
    "name": "good",
    "kind": "candidate",
    "perplexity": {
        "in_domain": {"perplexity": 25.0},
        "out_of_domain": {"perplexity": 50.0},
    },
    "task_mean": {"value": 0.75, "stderr": 0.04},
    "tasks": {
        "agreement": {"metric": "acc", "value": 0.75, "stderr": 0.04},
        "islands": {"metric": "acc", "value": 0.75, "stderr": 0.05},
        "bits": {
            "metric": "acc",
            "value": 9.0,
            "stderr": 0.1,
            "higher_is_better": False,
        },
    },
    "protocol": PROTOCOL,
    "protocol_digest": "d" * 64,
}
SPEED = {
    "ratio": {"prompt_speedup": 1.25, "memory": 0.8},
    "generation_agrees": True,
    "repetition": {"dense": 0.0625, "pruned": 0.125},
    "loads": {"ok": True, "fault": None},
    "weights": {"finite": True, "factor": 3.5, "matrix": "layers.*.mlp.up_proj.weight"},
}
CHAMPION = {
    "version": "3",
    "perplexity": {"out_of_domain": {"perplexity": 50.0}},
    "protocol": PROTOCOL,
    "protocol_digest": "d" * 64,
}
RULES = [
    "perplexity in domain",
    "perplexity out of domain",
    "task mean",
    "worst task",
    "prompt speed-up",
    "memory",
    "repetition",
    "generation with cache",
    "plain transformers",
    "champion",
    "weights",
]


def altered(tree: dict, path: str, value: Any) -> dict:
    tree = copy.deepcopy(tree)
    *parents, last = path.split(".")
    branch = tree
    for key in parents:
        branch = branch[key]
    branch[last] = value
    return tree


def judge(
    gate: Gate, dense: dict, candidate: dict, speed: dict | None, champion: dict | None
) -> Verdict:
    return judge_typed(
        gate,
        Row.model_validate(dense),
        Row.model_validate(candidate),
        None if speed is None else Speed.model_validate(speed),
        None if champion is None else Champion.model_validate(champion),
    )


def rule_of(verdict: Verdict, name: str) -> Rule:
    return next(rule for rule in verdict.rules if rule.rule == name)


def broken(verdict: Verdict) -> list[str]:
    return [rule.rule for rule in verdict.rules if not rule.passed]


def test_a_good_candidate_passes_every_rule() -> None:
    verdict = judge(Gate(), DENSE, GOOD, SPEED, CHAMPION)
    assert verdict.passed
    assert verdict.enforced
    assert [rule.rule for rule in verdict.rules] == RULES
    # 25/20 and 50/40; 0.80 - 0.75 - sqrt(0.03^2 + 0.04^2) = 0; agreement: 0.9 - 0.75 - 0.05; speed and memory as
    # measured; 0.125 - 0.0625; two checks; 50/50; weights as measured
    values = [rule.value for rule in verdict.rules]
    expected = [1.25, 1.25, 0.0, 0.1, 1.25, 0.8, 0.0625, 1, 1, 1.0, 3.5]
    assert values == pytest.approx(expected)
    assert all(rule.reason.endswith(".") for rule in verdict.rules)


@pytest.mark.parametrize(
    ("name", "path", "bad"),
    [
        (
            "perplexity in domain",
            "perplexity.in_domain.perplexity",
            30.1,
        ),  # 30.1 / 20 = 1.505 > 1.5
        ("perplexity out of domain", "perplexity.out_of_domain.perplexity", 60.1),
        ("task mean", "task_mean.value", 0.699),  # 0.101 - 0.05 = 0.051 > 0.05
        ("worst task", "tasks.agreement.value", 0.699),  # 0.201 - 0.05 = 0.151 > 0.15
    ],
)
@pytest.mark.parametrize("value", ["bad", None, math.nan, math.inf, -math.inf])
def test_a_bad_missing_or_odd_number_fails_its_rule_alone(
    name: str, path: str, bad: float, value: Any
) -> None:
    verdict = judge(
        Gate(),
        DENSE,
        altered(GOOD, path, bad if value == "bad" else value),
        SPEED,
        None,
    )
    assert broken(verdict) == [name]
    assert not verdict.passed
    # what is not finite is recorded as null
    json.dumps(plain(verdict), allow_nan=False)
    reason = rule_of(verdict, name).reason
    expected = (
        "exceeds"
        if value == "bad"
        else "was not measured"
        if value is None
        else "not a finite number"
    )
    assert expected in reason


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0, None])
def test_a_dense_perplexity_that_cannot_be_fails(value: float | None) -> None:
    verdict = judge(
        Gate(),
        altered(DENSE, "perplexity.in_domain.perplexity", value),
        GOOD,
        SPEED,
        None,
    )
    assert not rule_of(verdict, "perplexity in domain").passed


def test_at_the_limit_passes() -> None:
    at_limit = altered(GOOD, "perplexity.in_domain.perplexity", 30.0)
    verdict = judge(Gate(min_prompt_speedup=1.25), DENSE, at_limit, SPEED, None)
    assert verdict.passed


def test_task_loss_needs_both_standard_errors() -> None:
    verdict = judge(Gate(), DENSE, altered(GOOD, "task_mean.stderr", None), SPEED, None)
    assert not rule_of(verdict, "task mean").passed


def test_the_worst_task_is_named() -> None:
    # islands loses 0.7 - 0.4 - sqrt(0.05^2 + 0.05^2) = 0.2293, agreement 0.1
    verdict = judge(
        Gate(), DENSE, altered(GOOD, "tasks.islands.value", 0.4), SPEED, None
    )
    rule = rule_of(verdict, "worst task")
    assert rule.value == pytest.approx(0.2293, abs=1e-4)
    assert (
        "the worst task, islands, beyond its standard error is 0.22929, which exceeds"
        in rule.reason
    )


def test_a_task_that_the_candidate_was_not_given_is_the_worst() -> None:
    fewer = copy.deepcopy(GOOD)
    del fewer["tasks"]["islands"]
    rule = rule_of(judge(Gate(), DENSE, fewer, SPEED, None), "worst task")
    assert not rule.passed
    assert (
        "the worst task, islands, beyond its standard error was not measured"
        in rule.reason
    )


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("prompt speed-up", "ratio.prompt_speedup", 0.99, "is below the least"),
        ("prompt speed-up", "ratio", {}, "was not measured"),
        ("prompt speed-up", "ratio.prompt_speedup", None, "was not measured"),
        ("memory", "ratio.memory", 1.01, "exceeds the most"),
        ("memory", "ratio.memory", None, "was not measured"),
        (
            "repetition",
            "repetition.pruned",
            0.1635,
            "is 0.101, which exceeds the most allowed, 0.1.",
        ),  # less 0.0625
        ("repetition", "repetition", None, "was not measured"),
        ("generation with cache", "generation_agrees", False, "wired wrongly"),
        (
            "generation with cache",
            "generation_agrees",
            None,
            "nothing passes unmeasured",
        ),
        (
            "plain transformers",
            "loads",
            {"ok": False, "fault": "ValueError: no weights"},
            "ValueError: no weights.",
        ),
        ("plain transformers", "loads", None, "nothing passes unmeasured"),
    ],
)
def test_what_the_bench_found_or_did_not_try(
    name: str, path: str, value: Any, words: str
) -> None:
    verdict = judge(Gate(), DENSE, GOOD, altered(SPEED, path, value), CHAMPION)
    assert name in broken(verdict)
    assert words in rule_of(verdict, name).reason


def test_without_a_champion_its_rule_says_so_and_passes() -> None:
    rule = rule_of(judge(Gate(), DENSE, GOOD, SPEED, None), "champion")
    assert (rule.passed, rule.value) == (True, None)
    assert "There is no champion yet" in rule.reason


def test_a_candidate_worse_than_the_champion_is_refused() -> None:
    # 50 / 49 = 1.0204 > 1.02, and 50 / 49.5 = 1.0101
    better, near = (
        altered(CHAMPION, "perplexity.out_of_domain.perplexity", value)
        for value in (49.0, 49.5)
    )
    verdict = judge(Gate(), DENSE, GOOD, SPEED, better)
    assert broken(verdict) == ["champion"]
    assert (
        "that of the champion, version 3, is 1.0204, which exceeds"
        in rule_of(verdict, "champion").reason
    )
    assert judge(Gate(), DENSE, GOOD, SPEED, near).passed
    assert judge(Gate(max_champion_ratio=1.03), DENSE, GOOD, SPEED, better).passed
    assert judge(Gate(max_champion_ratio=None), DENSE, GOOD, SPEED, better).passed


def test_unlike_protocols_are_not_compared_and_the_difference_is_named() -> None:
    # the champion's perplexity is far worse, so a comparison would pass
    other = {"texts": {"out_of_domain": "e" * 64}, "limit": 5, "device": "cpu"}
    champion = altered(CHAMPION, "perplexity.out_of_domain.perplexity", 90.0) | {
        "protocol": other
    }
    verdict = judge(
        Gate(), DENSE, GOOD, SPEED, champion | {"protocol_digest": "f" * 64}
    )
    rule = rule_of(verdict, "champion")
    assert (rule.passed, rule.value) == (False, None)
    unlike = "limit 5 (candidate: null), texts.out_of_domain eeeeeeeeeeee... (candidate: cccccccccccc...)."
    assert f"version 3: it was measured under another protocol: {unlike}" in rule.reason
    assert "device" not in rule.reason


@pytest.mark.parametrize(
    ("champion", "words"),
    [
        (
            {"version": "3", "fault": "there is no record.json beside its weights"},
            "version 3: there is no record.json",
        ),
        (
            CHAMPION | {"protocol_digest": None},
            "the protocol of the champion is not known",
        ),
        (CHAMPION | {"protocol_digest": "f" * 64}, "only the digests differ"),
        (CHAMPION | {"perplexity": {}}, "was not measured"),
        (
            CHAMPION | {"perplexity": {"out_of_domain": {"perplexity": math.inf}}},
            "not a finite number",
        ),
    ],
)
def test_a_champion_that_cannot_be_compared_with_refuses(
    champion: dict, words: str
) -> None:
    verdict = judge(Gate(), DENSE, GOOD, SPEED, champion)
    assert broken(verdict) == ["champion"]
    assert words in rule_of(verdict, "champion").reason


def test_a_limit_of_null_switches_its_rule_off() -> None:
    limits = (
        "max_task_mean_loss",
        "max_task_loss",
        "min_prompt_speedup",
        "max_memory_ratio",
        "max_repetition",
    )
    gate = Gate(
        **dict.fromkeys(limits),
        check_generation=False,
        check_loads=False,
        max_champion_ratio=None,
    )
    speed = {"weights": SPEED["weights"]}
    verdict = judge(gate, DENSE, altered(GOOD, "task_mean", None), speed, None)
    assert verdict.passed
    assert [rule.rule for rule in verdict.rules] == [*RULES[:2], "weights"]


def test_no_numbers_at_all_fail() -> None:
    dense, candidate = (
        {"name": kind, "kind": kind, "protocol_digest": "d" * 64}
        for kind in ("dense", "candidate")
    )
    other = CHAMPION | {"protocol_digest": "f" * 64}
    assert broken(judge(Gate(), dense, candidate, {}, other)) == RULES


def test_dry_run_records_but_does_not_enforce() -> None:
    verdict = judge(Gate(mode="dry-run"), DENSE, GOOD, None, None)
    assert not verdict.passed
    assert not verdict.enforced
    assert [rule.rule for rule in verdict.rules] == RULES


def test_off_judges_weights_alone() -> None:
    worse = altered(GOOD, "perplexity.out_of_domain.perplexity", 1e6)
    verdict = judge(Gate(mode="off"), DENSE, worse, SPEED, None)
    assert [rule.rule for rule in verdict.rules] == ["weights"]
    assert (verdict.passed, verdict.enforced, verdict.refused) == (True, False, False)


def test_a_candidate_measured_under_another_protocol_never_passes() -> None:
    # its numbers are those of a good candidate: only that they were measured on five items refuses it
    other = GOOD | {
        "protocol": PROTOCOL | {"limit": 5, "texts": {"out_of_domain": "e" * 64}},
        "protocol_digest": "f" * 64,
    }
    verdict = judge(Gate(), DENSE, other, SPEED, None)
    assert broken(verdict) == ["protocol"]
    assert not verdict.passed
    rule = rule_of(verdict, "protocol")
    assert (rule.value, rule.limit) == (None, None)
    unlike = "limit null (candidate: 5), texts.out_of_domain cccccccccccc... (candidate: eeeeeeeeeeee...)."
    assert unlike in rule.reason
    assert "device" not in rule.reason


@pytest.mark.parametrize(
    ("dense", "candidate", "whose"),
    [
        (None, "d" * 64, "dense model"),
        ("d" * 64, None, "candidate"),
        (None, None, "dense model"),
    ],
)
def test_a_protocol_that_is_not_known_never_passes(
    dense: str | None, candidate: str | None, whose: str
) -> None:
    rows = DENSE | {"protocol_digest": dense}, GOOD | {"protocol_digest": candidate}
    gate = Gate(max_champion_ratio=None)
    verdict = judge(gate, *rows, SPEED, None)
    assert broken(verdict) == ["protocol"]
    assert (
        f"the protocol of the {whose} is not known"
        in rule_of(verdict, "protocol").reason
    )
