"""The gate: may a candidate be registered? Each rule has a value, a limit and a sentence; missing data never pass."""

import math
from collections.abc import Iterable

from pydantic import ValidationError

from elder.errors import UserError
from elder.evaluation.rules import (
    Limit,
    at_least,
    at_most,
    fall_beyond_noise,
    no_comparison,
    perplexity_ratio,
)
from elder.params import Gate
from elder.record import (
    DOMAINS,
    Champion,
    Domain,
    EngineTrial,
    LoadTrial,
    Record,
    Repetition,
    Row,
    Rule,
    Speed,
    Verdict,
    Weights,
)

WEIGHTS = "weights"
# A factor that no setting changes. Of all that is done to models here, compensation moves matrices the most; fp8 codes
# without their scales are off by thousands.
MAGNITUDE = 100.0
# Mean divergence in nats of an engine's next token from transformers': bfloat16 on both sides stays far below it, and a
# field of the configuration that one of the two misreads is far above.
ENGINES_AGREE = 0.01
CURE = "Measure as the champion was measured, or set gate.max_champion_ratio to null."


def judge(
    gate: Gate,
    dense: Row,
    candidate: Row,
    speed: Speed | None,
    champion: Champion | None,
) -> Verdict:
    """Judge a candidate against the dense model, and against the champion where there is one.

    Args:
        gate: mode and limits; a limit of None switches its rule off. The rule on weights holds in every mode.
        dense: the record's row of the dense model.
        candidate: the record's row of the candidate; measured under another protocol, it never passes.
        speed: of both models; None where it was not measured.
        champion: the present one; None where the registry has none.
    """
    measured = speed or Speed()
    rules: list[Rule] = []
    if gate.mode != "off":
        rules += _known(_of_rows(gate, dense, candidate))
        rules += _known(_of_bench(gate, measured))
        rules += _known(_engine(name, measured.engines) for name in gate.engines)
        rules += _known([beside_champion(gate.max_champion_ratio, candidate, champion)])
    return _verdict(gate, [*rules, _weights(measured.weights)])


def _verdict(gate: Gate, rules: list[Rule]) -> Verdict:
    return Verdict(
        mode=gate.mode,
        passed=all(rule.passed for rule in rules),
        enforced=gate.mode == "on",
        rules=rules,
    )


def judge_again(record: Record) -> Verdict:
    """Judge a record's numbers by the record's own rules.

    Raises:
        UserError: it does not hold the rules, or the numbers.
    """
    try:
        rules = Gate.model_validate(record.lineage.params["gate"])
    except (KeyError, ValidationError):
        raise UserError(
            "the record does not say by which rules the gate judged"
        ) from None
    rows = record.dense, record.candidate
    judged = judge(rules, *rows, record.speed, record.champion)
    told = [rule.rule for rule in record.gate.rules]
    if WEIGHTS in told or (record.speed and record.speed.weights):
        return judged
    # made before there was such a rule
    return _verdict(rules, [rule for rule in judged.rules if rule.rule != WEIGHTS])


def differences(told: Verdict, judged: Verdict) -> list[str]:
    """Return a sentence for each thing in which two verdicts differ."""
    before: dict[str, object] = {"mode": told.mode, "passed": told.passed}
    now: dict[str, object] = {"mode": judged.mode, "passed": judged.passed}
    for verdict, by_rule in ((told, before), (judged, now)):
        for rule in verdict.rules:
            by_rule[f"rule {rule.rule}"] = (rule.value, rule.limit, rule.passed)
    return [
        f"{what} is {before.get(what)}, judged again {now.get(what)}"
        for what in before | now
        if before.get(what) != now.get(what)
    ]


def _known(rules: Iterable[Rule | None]) -> list[Rule]:
    """Leave out the rules that are switched off."""
    return [rule for rule in rules if rule is not None]


def _of_rows(gate: Gate, dense: Row, candidate: Row) -> list[Rule | None]:
    """Judge what both models were found to be worth."""
    return [
        _same_protocol(dense, candidate),
        _perplexity(gate.max_perplexity_ratio_in_domain, dense, candidate, "in_domain"),
        _perplexity(
            gate.max_perplexity_ratio_out_of_domain, dense, candidate, "out_of_domain"
        ),
        _task_mean(gate.max_task_mean_loss, dense, candidate),
        _worst_task(gate.max_task_loss, dense, candidate),
    ]


def _of_bench(gate: Gate, speed: Speed) -> list[Rule | None]:
    """Judge speed and memory, and what else was tried with the saved model."""
    return [
        _prompt_speedup(gate.min_prompt_speedup, speed),
        _memory(gate.max_memory_ratio, speed),
        _repetition(gate.max_repetition, speed.repetition),
        _generation(speed.generation_agrees) if gate.check_generation else None,
        _loads(speed.loads) if gate.check_loads else None,
    ]


def _same_protocol(dense: Row, candidate: Row) -> Rule | None:
    """Refuse rows that were measured in two ways; there is no such rule where both were measured in one."""
    fault = no_comparison(dense, candidate, "dense model")
    if not fault:
        return None
    reason = f"The candidate cannot be compared with the dense model: {fault}. Measure both in one way."
    return Rule(rule="protocol", value=None, limit=None, passed=False, reason=reason)


def _perplexity(
    limit: Limit, dense: Row, candidate: Row, domain: Domain
) -> Rule | None:
    label = DOMAINS[domain]
    value = perplexity_ratio(candidate, dense, domain)
    return at_most(
        f"perplexity {label}", value, limit, f"pruned over dense perplexity {label}"
    )


def _task_mean(limit: Limit, dense: Row, candidate: Row) -> Rule | None:
    value = fall_beyond_noise(dense.task_mean, candidate.task_mean)
    what = "loss of the mean over tasks beyond its standard error"
    return at_most("task mean", value, limit, what)


def _worst_task(limit: Limit, dense: Row, candidate: Row) -> Rule | None:
    """Judge the task that lost most. Tasks of which less is better stay out: their scales differ from each other."""
    losses: dict[str, float | None] = {}
    for name, before in dense.tasks.items():
        if before.higher_is_better:
            losses[name] = fall_beyond_noise(before, candidate.tasks.get(name))
    if not losses:
        return at_most("worst task", None, limit, "loss of any single task")
    worst = max(losses, key=lambda name: _badness(losses[name]))
    what = f"loss of the worst task, {worst}, beyond its standard error"
    return at_most("worst task", losses[worst], limit, what)


def _badness(loss: float | None) -> float:
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _prompt_speedup(limit: Limit, speed: Speed) -> Rule | None:
    value = speed.ratio.prompt_speedup
    return at_least("prompt speed-up", value, limit, "dense over pruned prompt latency")


def _memory(limit: Limit, speed: Speed) -> Rule | None:
    return at_most("memory", speed.ratio.memory, limit, "pruned over dense peak memory")


def _repetition(limit: Limit, shares: Repetition | None) -> Rule | None:
    value = shares.pruned - shares.dense if shares else None
    what = "share of repeated 4-grams in generated text, pruned less dense,"
    return at_most("repetition", value, limit, what)


def _generation(agrees: bool | None) -> Rule:
    if agrees is None:
        reason = "Generation with and without the key/value cache was not compared, and nothing passes unmeasured."
    elif agrees:
        reason = "Greedy generation gives the same tokens with and without the key/value cache."
    else:
        reason = "Greedy generation differs with and without the key/value cache: the layers are wired wrongly."
    return _must_be_true("generation with cache", agrees, reason)


def _loads(trial: LoadTrial | None) -> Rule:
    if trial is None:
        reason = "Loading in plain transformers was not tried, and nothing passes unmeasured."
    elif trial.ok:
        reason = (
            "The saved model loads in plain transformers, in a process of its own, "
            "and its logits are finite."
        )
    else:
        reason = f"The saved model does not work in plain transformers: {trial.fault}."
    return _must_be_true("plain transformers", trial.ok if trial else None, reason)


def _engine(name: str, trials: list[EngineTrial]) -> Rule | None:
    """Judge whether an engine serves the model as transformers does."""
    trial = next((one for one in trials if one.engine == name), None)
    what = f"mean divergence of {name}'s next token from transformers', in nats,"
    if trial is None:
        reason = f"The model was not tried in {name}, and nothing passes unmeasured."
    elif trial.fault:
        reason = f"{name} does not serve the model: {trial.fault}."
    elif not trial.same_ids:
        reason = f"{name} cuts a text into other tokens than the model's tokenizer."
    else:
        return at_most(name, trial.divergence, ENGINES_AGREE, what)
    return Rule(rule=name, value=None, limit=ENGINES_AGREE, passed=False, reason=reason)


def _weights(found: Weights | None) -> Rule:
    """Judge what no setting lets pass: weights that are none."""
    factor = found.factor if found and found.finite else None
    if found is None:
        reason = "The weights were not compared with the dense model's, and nothing passes unmeasured."
    elif not found.finite:
        reason = "Some weights are nan or infinite."
    else:
        apart = "infinitely far" if factor is None else f"by a factor of {factor:.4g}"
        reason = (
            f"All weights are finite; {found.matrix} is out of the dense model's range {apart}, and the most allowed "
            f"is {MAGNITUDE:g}."
        )
    return Rule(
        rule=WEIGHTS,
        value=factor,
        limit=MAGNITUDE,
        passed=factor is not None and factor <= MAGNITUDE,
        reason=reason,
        always=True,
    )


def _must_be_true(name: str, value: bool | None, reason: str) -> Rule:
    return Rule(rule=name, value=value, limit=True, passed=value is True, reason=reason)


def beside_champion(
    limit: Limit, candidate: Row, champion: Champion | None
) -> Rule | None:
    """Judge the candidate beside the champion, unless their numbers cannot be compared: then it does not pass.

    Args:
        limit: the most that the candidate's perplexity out of domain may be, over the champion's; None: no rule.
        candidate: its row.
        champion: the present one, with its numbers or with what is wrong with them; None: there is none.
    """
    if limit is None:
        return None
    if champion is None:
        reason = "There is no champion yet that the candidate could be worse than."
        return Rule(
            rule="champion", value=None, limit=limit, passed=True, reason=reason
        )
    name = f"the champion, version {champion.version}"
    fault = champion.fault or no_comparison(champion, candidate, "champion")
    if fault:
        reason = f"There is no comparison with {name}: {fault}. {CURE}"
        return Rule(
            rule="champion", value=None, limit=limit, passed=False, reason=reason
        )
    value = perplexity_ratio(candidate, champion, "out_of_domain")
    return at_most(
        "champion", value, limit, f"perplexity out of domain over that of {name},"
    )
