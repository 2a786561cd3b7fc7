"""ELDeR, stage 2: shrink what the selected layers add to the hidden state, so that it moves into the other layers.

    L_sum = LM(W, X) + lambda2 * sum_{i in P} || f_i(h_i) - h_i ||_q

P is fixed; all weights train, or adapters on them. The norm is taken per token over the hidden dimension, un-squared,
and averaged over tokens.

Beyond the paper, the layers may fade out while the others learn (annealed removal): what they add is multiplied by a
weight that falls from 1 to 0, so that at the end the model computes as if they were gone. The norm is that of what is
left of it.

As the authors' code has it (github.com/fmk345/TRSP, ``finetune.py``), the layers may also come one by one, in order of
removal: each has an equal share of the steps, in which its norm alone counts, and is switched off after it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from elder import params
from elder.model.forward import block_losses, next_token_losses, observed_states
from elder.model.layers import LayerControl, find_layers, skipping
from elder.record import Spent
from elder.training.data import TrainingData
from elder.training.loop import LossFunction, StepHook, TrainingRun
from elder.training.losses import residual_norm
from elder.training.search import Values
from elder.training.tune import Objective, grids_of, micro_batch_of, tune

LAMBDA2_GRID = (0.001, 0.01, 0.1)


def regularise(
    model: Any,
    removed: Sequence[int],
    data: TrainingData,
    settings: params.Regularise,
    run: TrainingRun,
) -> Spent:
    """Train the whole model, in place, so that the layers in ``removed`` come to do nothing.

    Args:
        model: the dense model, weights in float32.
        removed: the selected layers P.
        data: blocks to learn from, and those that judge trials.
        settings: the section ``regularise``.
        run: what it runs with.

    Returns:
        What was spent; automatic values are judged by the loss without the layers on held-out blocks.
    """
    grids = grids_of(settings, model)
    if settings.lambda2 == "auto":
        grids |= {"lambda2": LAMBDA2_GRID}

    turn = Turn(len(removed))

    def loss_with(values: Values) -> LossFunction:
        strength = values["lambda2"] if settings.lambda2 == "auto" else settings.lambda2
        return Regularised(model, removed, settings, strength, turn)

    at_once = micro_batch_of(model, data, settings, run.label)

    def loss_without_layers(held_out: Tensor) -> float:
        with skipping(model, removed):
            losses = at_once.attempt(
                partial(block_losses, model, held_out, compute=run.compute)
            )
        return losses.mean().item()

    layers = find_layers(model)
    with LayerControl(nn.ModuleList([layers[index] for index in removed])) as control:
        hook = steering(control, settings, turn)
        wanted = replace(run, micro_batch=at_once, at_step=hook)
        objective = Objective(loss_with, grids, loss_without_layers)
        return tune(model, data, settings, objective, wanted)


def steering(
    control: LayerControl, settings: params.Regularise, turn: "Turn"
) -> StepHook | None:
    """Return what changes the weights of what the layers add before each step; None where nothing does."""

    def fade(done: float) -> None:
        weight = residual_weight(done, settings.anneal)
        control.weights = torch.full((turn.count,), weight)

    def switch(done: float) -> None:
        control.weights = turn.pass_on(done)

    if settings.anneal:
        return fade
    return switch if settings.one_by_one else None


@dataclass(frozen=True)
class Regularised:
    """The next-token loss and the sum of what the selected layers add, L_sum in the head of this file.

    Attributes:
        model: the dense model.
        removed: the selected layers P.
        settings: which norm.
        strength: lambda2.
        turn: whose turn it is, where they come one by one.
    """

    model: Any
    removed: Sequence[int]
    settings: params.Regularise
    strength: float
    turn: "Turn"

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the loss of token ids, (batch, seq_len): a scalar."""
        shrinking = self.removed
        if self.turn.now is not None:
            shrinking = [self.removed[self.turn.now]]
        final, states = observed_states(self.model, ids, shrinking)
        norms = []
        for entering, leaving in states:
            norm = residual_norm(
                entering, leaving, self.settings.norm, self.settings.relative
            )
            norms.append(norm)
        return (
            next_token_losses(self.model, ids, states=final).mean()
            + self.strength * torch.stack(norms).sum()
        )


@dataclass
class Turn:
    """Whose turn it is of ``count`` layers that are shrunk one by one: ``now``, or None where all are at once."""

    count: int
    now: int | None = None

    def pass_on(self, done: float) -> Tensor:
        """Take the turn of a step, ``done`` being the share of the steps that are done once it is.

        Returns:
            The weights of what the layers add, (count,): 0 for those that had their turn.
        """
        self.now = min(self.count, math.ceil(done * self.count)) - 1
        return (torch.arange(self.count) >= self.now).float()


def residual_weight(done: float, anneal: float) -> float:
    """Return the weight of what the selected layers add: from 1 down to 0, once a share ``anneal`` of steps is done."""
    return max(0.0, 1.0 - done / anneal)
