"""Trying layers: which is missed the least on all calibration blocks, by all of them or by a race over some.

In a race the blocks come in an order drawn by the seed. After n of all N, the layers still in it are compared with the
one missed the least so far, block by block; with d the differences of their losses, a layer leaves if

    mean(d) > q * sd(d) / sqrt(n) * sqrt(1 - n / N)

q being the quantile of Student's t with n - 1 degrees of freedom, one-sided, at (1 - confidence) over the number of all
such comparisons in the selection, and the last factor what drawing without replacement leaves of the error (Cochran,
"Sampling Techniques", 1977, 2.6). So the choice is that of all blocks with the confidence asked for (Bonferroni), as
far as means of n differences are normal. Races as such: Maron and Moore, "Hoeffding Races", 1993; their bound, which
assumes nothing but a range, would keep every layer in for all of a hundred blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from elder.model.finite import refuse_not_finite
from elder.model.layers import LayerControl
from elder.parallel.ranks import count, share
from elder.progress import Meter
from elder.selection.base import Problem
from elder.selection.candidates import candidate_losses

FIRST_LOOK = 8  # blocks: fewer say too little about the spread of differences


@dataclass(frozen=True)
class Tried:
    """What came of trying some layers.

    Attributes:
        losses: {layer: mean loss over all blocks without it}; of one that left a race, that of the least missed plus
            their mean difference on the blocks that both were tried on.
        blocks: {layer: blocks that it was tried on}.
        whole: how many blocks there are.
    """

    losses: dict[int, float]
    blocks: dict[int, int]
    whole: int

    @property
    def least_missed(self) -> int:
        """Return the layer with the lowest loss of those tried on the most blocks, the first of equals."""
        return least_missed(self.losses, self.blocks)

    @property
    def run(self) -> tuple[tuple[int, int], ...]:
        """Return (layer, blocks) as a round's record has it: empty where all were tried on all of them."""
        fewer = min(self.blocks.values()) < self.whole
        return tuple(self.blocks.items()) if fewer else ()


def least_missed(losses: dict[int, float], blocks: dict[int, int]) -> int:
    """Return the layer with the lowest loss of those tried on the most blocks, the first of equals."""
    most = max(blocks.values())
    stayed = [layer for layer in losses if blocks[layer] == most]
    return min(stayed, key=lambda layer: losses[layer])


class Trials:
    """Tries the layers of one selection, round by round, and counts what that takes.

    Args:
        problem: its model is run, ``forward_batch`` blocks at a time; its seed orders the blocks of races.
        control: of the model's layers, entered.
        blocks: (blocks, tokens) int64.
        confidence: that all rounds of ``problem.count`` choose as with all blocks; None: all blocks are used.
        step: counts blocks, those not needed included.
    """

    def __init__(
        self,
        problem: Problem,
        control: LayerControl,
        blocks: torch.Tensor,
        confidence: float | None = None,
        step: Meter | None = None,
    ) -> None:
        self.problem, self.control, self.blocks = problem, control, blocks
        self.confidence, self.step = confidence, step
        self.run = self.whole = 0  # a layer tried on a block counts one

    @torch.no_grad()
    def __call__(self, layers: Sequence[int], gone: set[int], number: int = 0) -> Tried:
        """Try some layers, those in ``gone`` being bypassed already.

        Args:
            layers: at least one.
            gone: none of ``layers``.
            number: of the round.

        Raises:
            NotFiniteError: for a loss that is not finite.
        """
        racing = list(layers)
        losses: dict[int, list[torch.Tensor]] = {layer: [] for layer in racing}
        order = self._order(number)
        for start, stop in pairwise([0, *self._looks()]):
            self._try(racing, gone, order[start:stop], losses)
            found = {layer: torch.cat(losses[layer]) for layer in racing}
            for layer, values in found.items():
                refuse_not_finite(
                    values.sum().item(), f"the loss without layer {layer}"
                )
            if stop < len(order):
                racing = survivors(found, len(order), self._error(len(layers)))
            if len(racing) == 1:
                break
        self.whole += len(layers) * len(order)
        if self.step and stop < len(order):
            self.step(steps=len(order) - stop)
        seen = {layer: torch.cat(parts) for layer, parts in losses.items()}
        return _compared(seen, len(order))

    def told(self) -> str:
        """Say what all trials so far took, and how sure their choice is."""
        share = self.run / self.whole
        assert self.confidence is not None
        return (
            f"{self.run} of {self.whole} block evaluations ({share:.0%}); with confidence {self.confidence:g} the "
            "choice is that of all blocks"
        )

    def _try(
        self,
        layers: list[int],
        gone: set[int],
        rows: torch.Tensor,
        losses: dict[int, list[torch.Tensor]],
    ) -> None:
        """Add the losses of some blocks, which processes share out."""

        def losses_without(chosen: torch.Tensor) -> dict[int, torch.Tensor]:
            ids = self.blocks[chosen]
            model, control = self.problem.model, self.control
            found = candidate_losses(model, control, layers, gone, ids)
            if self.step:
                self.step(steps=count() * len(ids))
            return found

        for found in share(rows.split(self.problem.forward_batch), losses_without):
            for layer, values in found.items():
                losses[layer].append(values)
        self.run += len(layers) * len(rows)

    def _order(self, number: int) -> torch.Tensor:
        count = len(self.blocks)
        if self.confidence is None:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(self.problem.seed + number)
        return torch.randperm(count, generator=generator)

    def _looks(self) -> list[int]:
        """Return after how many blocks layers are compared: twice as many each time, and at last all."""
        count = len(self.blocks)
        looks = []
        if self.confidence is not None:
            size = FIRST_LOOK
            while size < count:
                looks.append(size)
                size *= 2
        return [*looks, count]

    def _error(self, layers: int) -> float:
        """Return the error that one comparison may have: all of the selection share what the confidence leaves."""
        assert self.confidence is not None
        comparisons = self.problem.count * (len(self._looks()) - 1) * (layers - 1)
        return (1 - self.confidence) / max(1, comparisons)


def _compared(losses: dict[int, torch.Tensor], whole: int) -> Tried:
    """Return the losses of all layers as if on the same blocks; what fewer blocks say is taken as a difference."""
    means = {layer: values.mean().item() for layer, values in losses.items()}
    blocks = {layer: len(values) for layer, values in losses.items()}
    best = least_missed(means, blocks)
    for layer, values in losses.items():
        if blocks[layer] < blocks[best]:
            apart = values - losses[best][: blocks[layer]]
            means[layer] = means[best] + apart.mean().item()
    return Tried(means, blocks, whole)


def survivors(
    losses: dict[int, torch.Tensor], population: int, error: float
) -> list[int]:
    """Return the layers that may still be missed the least of all blocks, in the order given.

    Args:
        losses: of each layer on the same blocks, (n,) float64, n of at least 2.
        population: N, of which these blocks were drawn without replacement.
        error: with which the layer sought may leave in one comparison.
    """
    best = min(losses, key=lambda layer: losses[layer].mean().item())
    stay = []
    for layer, values in losses.items():
        if not loses(values - losses[best], population, error):
            stay.append(layer)
    return stay


def loses(apart: torch.Tensor, population: int, error: float) -> bool:
    """Say whether differences on some blocks show that their mean over all is above 0.

    Args:
        apart: (n,) float64, n of at least 2.
        population: see `survivors`.
        error: with which the answer may be wrong where it is yes.
    """
    count = len(apart)
    mean = apart.mean().item()
    spread = apart.std().item() * math.sqrt((1 - count / population) / count)
    return mean > 0 and (spread == 0 or upper_tail(mean / spread, count - 1) < error)


def upper_tail(t: float, degrees: int) -> float:
    """Return P(T > t) of Student's t with whole degrees of freedom, t >= 0 (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    It is a difference from 1/2: below 1e-15 it comes out as 0 or nearly so.
    """
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term = total = cosine if odd else 1.0
    for step in range(2 + odd, degrees, 2):
        term *= cosine**2 * (step - 1) / step
        total += term
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + (inside if degrees > 1 else 0.0))
    return max(0.0, (1 - inside) / 2)
