"""What the gate's rules are made of: which numbers may be compared, and a value held against its limit.

A number may be missing, a limit may be off, and what was measured under another protocol is not compared.
"""

import math
from collections.abc import Mapping
from typing import Protocol

from elder.record import Domain, Json, Number, Perplexity, Row, Rule

Limit = float | None  # None: there is no such rule
LONGEST = 60  # characters of a value in a sentence


class Measured(Protocol):
    """What has perplexities: a row, or the champion."""

    @property
    def perplexity(self) -> Mapping[str, Perplexity]:
        """Return {domain: perplexity}."""


class Scored(Protocol):
    """What has a value and a standard error: a task, or the mean over tasks."""

    @property
    def value(self) -> Number | None:
        """Return the score."""

    @property
    def stderr(self) -> Number | None:
        """Return its standard error."""


class UnderProtocol(Protocol):
    """What was measured under a protocol: a row, or the champion."""

    @property
    def protocol(self) -> Mapping[str, Json]:
        """Return all that two results must share."""

    @property
    def protocol_digest(self) -> str | None:
        """Return the sha256 over it."""


def at_most(name: str, value: Number | None, limit: Limit, what: str) -> Rule | None:
    """Hold a value against the most that it may be.

    Args:
        name: of the rule.
        value: what was measured; None where it was not.
        limit: None switches the rule off, and gives None.
        what: the value in words, for the reason.
    """
    if limit is None:
        return None
    if value is None or not math.isfinite(value):
        return _without_number(name, value, limit, what)
    passed = value <= limit
    relation = "is within" if passed else "exceeds"
    reason = (
        f"The {what} is {value:.5g}, which {relation} the most allowed, {limit:.4g}."
    )
    return Rule(rule=name, value=value, limit=limit, passed=passed, reason=reason)


def at_least(name: str, value: Number | None, limit: Limit, what: str) -> Rule | None:
    """Hold a value against the least that it may be; see `at_most`."""
    if limit is None:
        return None
    if value is None or not math.isfinite(value):
        return _without_number(name, value, limit, what)
    passed = value >= limit
    relation = "reaches" if passed else "is below"
    reason = (
        f"The {what} is {value:.5g}, which {relation} the least allowed, {limit:.4g}."
    )
    return Rule(rule=name, value=value, limit=limit, passed=passed, reason=reason)


def _without_number(name: str, value: Number | None, limit: float, what: str) -> Rule:
    if value is None:
        reason = f"The {what} was not measured: measure it, or switch this rule off with null."
    else:
        reason = f"The {what} is {value}, which is not a finite number."
    return Rule(rule=name, value=None, limit=limit, passed=False, reason=reason)


def perplexity_ratio(above: Measured, below: Measured, domain: Domain) -> float | None:
    """Return the ratio of two perplexities: None where one is missing, NaN where it cannot be formed."""
    numerator = _perplexity(above, domain)
    denominator = _perplexity(below, domain)
    if numerator is None or denominator is None:
        return None
    if denominator == 0 or not math.isfinite(denominator):
        return math.nan
    return numerator / denominator


def _perplexity(measured: Measured, domain: Domain) -> Number | None:
    one = measured.perplexity.get(domain)
    return one.perplexity if one else None


def fall_beyond_noise(before: Scored | None, after: Scored | None) -> float | None:
    """Return how much a score fell, less the standard error of that fall: what noise alone would explain.

    None where a value or an error is missing.
    """
    first, second = _score(before), _score(after)
    if first is None or second is None:
        return None
    fall = first[0] - second[0]
    noise = math.hypot(first[1], second[1])
    return fall - noise


def _score(score: Scored | None) -> tuple[Number, Number] | None:
    """Return a value and its standard error; None where one of them is missing."""
    if score is None or score.value is None or score.stderr is None:
        return None
    return score.value, score.stderr


def no_comparison(other: UnderProtocol, candidate: Row, title: str) -> str | None:
    """Say why the candidate's numbers cannot be set beside another's; None where they can.

    Args:
        other: what it is set beside.
        candidate: its row.
        title: what the other one is called.
    """
    if other.protocol_digest is None:
        return f"the protocol of the {title} is not known"
    if candidate.protocol_digest is None:
        return "the protocol of the candidate is not known"
    if other.protocol_digest == candidate.protocol_digest:
        return None
    told = []
    unlike_parts = differences(other.protocol, candidate.protocol)
    for key, (before, after) in unlike_parts.items():
        mine = _short(after)
        told.append(f"{key} {_short(before)} (candidate: {mine})")
    unlike = ", ".join(told) or "only the digests differ"
    return f"it was measured under another protocol: {unlike}"


def _short(value: Json) -> str:
    """Return a value in a few characters: of a digest, what suffices to tell it from another."""
    text = "null" if value is None else str(value)
    if len(text) <= LONGEST:
        return text
    return f"{text[:12]}..."


def differences(
    before: Mapping[str, Json], after: Mapping[str, Json]
) -> dict[str, tuple[Json, Json]]:
    """Return {dotted key: values in both} where two recorded protocols differ."""
    mine, others = _leaves(before), _leaves(after)
    unlike = {}
    for key in sorted(mine | others):
        values = mine.get(key), others.get(key)
        if values[0] != values[1]:
            unlike[key] = values
    return unlike


def _leaves(tree: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """Return {dotted key: value} of a tree."""
    leaves: dict[str, Json] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{name}.")
        else:
            leaves[name] = value
    return leaves
