"""Which rows of a section are best, and which cannot be told from the best."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from elder.compare.result import Result
from elder.record import Mean

NOISE = 2.0  # standard errors below which a difference is called a tie

Mark = Literal["best", "tie"]


def mark_perplexities(
    losses: Mapping[str, float], results: Mapping[str, list[Result]], domain: str
) -> dict[str, Mark]:
    """Mark the row with the lowest loss, and those that tie with it.

    Args:
        losses: {row: its mean loss in nats} of the rows within the budget.
        results: {row: its results}, for the paired test.
        domain: of the text.
    """
    if not losses:
        return {}
    best = min(losses, key=lambda name: losses[name])
    marks: dict[str, Mark] = {}
    for name in losses:
        if name != best and tie(results[best], results[name], domain):
            marks[name] = "tie"
    return marks | {best: "best"}


def mark_task_means(means: Mapping[str, Mean]) -> dict[str, Mark]:
    """Mark the highest mean over tasks, and those less than two standard errors below it.

    The error is that of the difference of two independent means: answers are not kept item by item, so there is no
    paired test, and more rows tie than one would show.

    Args:
        means: {row: its mean} of the rows within the budget.
    """
    values = {
        name: mean.value for name, mean in means.items() if mean.value is not None
    }
    if not values:
        return {}
    best = max(values, key=lambda name: values[name])
    marks: dict[str, Mark] = {}
    for name, value in values.items():
        below = values[best] - value
        noise = math.hypot(means[best].stderr or 0.0, means[name].stderr or 0.0)
        if below == 0 or below < NOISE * noise:
            marks[name] = "tie"
    return marks | {best: "best"}


def tie(first: Iterable[Result], second: Iterable[Result], domain: str) -> bool:
    """Say whether two rows differ by less than noise: a paired test over blocks and seeds.

    With d[s, b] the difference of the two losses on block b for seed s, over the seeds that both rows have, the rows
    tie if |mean d| < 2 SE. For one seed SE = sd_b(d) / sqrt(blocks). For several, noise of the text and noise of the
    training add up: SE^2 = var_b(mean_s d) / blocks + var_s(mean_b d) / seeds.
    """
    others = {result.seed: result.losses[domain] for result in second}
    rows = []
    for result in first:
        if result.seed not in others:
            continue
        mine, other = result.losses[domain], others[result.seed]
        if not (np.isfinite(mine).all() and np.isfinite(other).all()):
            return False
        rows.append(other - mine)
    if not rows:
        return False
    differences = np.stack(rows)  # (seeds, blocks)
    seeds, blocks = differences.shape
    if blocks < 2:
        return False
    square = differences.mean(axis=0).var(ddof=1) / blocks
    if seeds > 1:
        square += differences.mean(axis=1).var(ddof=1) / seeds
    within_noise = abs(differences.mean()) < NOISE * math.sqrt(square)
    return bool(within_noise) or not differences.any()
