"""Recovery: train the shallower model on the calibration blocks, by their text or by what the dense model makes of it.

Distillation follows the dense model's next-token distribution, and where asked for also the text itself and the dense
model's hidden states t after the kept layers, whose own are s:

    L = (1 - next_token) KL + next_token LM + hidden * mean over kept layers of ||s - t||^2 / ||t||^2
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elder import params
from elder.model.forward import logits_of, next_token_losses, observed_logits
from elder.model.layers import find_layers
from elder.record import Spent
from elder.training.data import TrainingData
from elder.training.loop import LossFunction, TrainingRun
from elder.training.losses import distillation_loss, state_mismatch
from elder.training.tune import Objective, lr_grid, tune


def recover(
    model: Any,
    dense: Any,
    data: TrainingData,
    settings: params.Recover,
    run: TrainingRun,
    removed: Collection[int] = (),
) -> Spent:
    """Train the shallower model, in place.

    Args:
        model: the model after removal, weights in float32.
        dense: the model before, frozen; only ``distil`` looks at it.
        data: calibration blocks, and those that the dense model wrote; an epoch is a pass over as many blocks as there
            are of calibration text, whatever stands beside them.
        settings: the section ``recover``.
        run: what it runs with.
        removed: layers of the dense model that the shallower one lacks; only ``hidden`` looks at them.

    Returns:
        What was spent, search included.
    """
    loss: LossFunction = NextToken(model)
    if settings.mode == "distil":
        depths = (
            matching_layers(len(find_layers(dense)), removed)
            if settings.distil.hidden
            else []
        )
        loss = Distillation(model, dense, depths, settings.distil)
    budget = settings.epochs * data.calibration_blocks
    stretched = settings.model_copy(update={"epochs": budget / len(data.blocks)})
    objective = Objective(loss_with=lambda _: loss, grids=lr_grid(settings))
    spent = tune(model, data, stretched, objective, run)
    spent.tokens_generated = data.tokens_written
    return spent


@dataclass(frozen=True)
class NextToken:
    """The mean next-token loss of a batch."""

    model: Any

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the loss of token ids, (batch, seq_len), in nats: a scalar."""
        return next_token_losses(logits_of(self.model, ids), ids).mean()


@dataclass(frozen=True)
class Distillation:
    """How far the shallower model is from the dense one, as the head of this file has it.

    Attributes:
        model: the shallower model.
        dense: the dense model, frozen.
        depths: for each kept layer, the dense layer whose output it should put out; none where ``hidden`` is 0.
        settings: of the section ``recover.distil``.
    """

    model: Any
    dense: Any
    depths: Sequence[int]
    settings: params.Distil

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the loss of token ids, (batch, seq_len), in nats: a scalar."""
        with torch.no_grad():
            targets, wanted = observed_logits(self.dense, ids, self.depths)
        logits, states = observed_logits(self.model, ids, range(len(self.depths)))
        share, hidden = self.settings.next_token, self.settings.hidden
        total = (1 - share) * distillation_loss(logits, targets)
        if share:
            total = total + share * next_token_losses(logits, ids).mean()
        if hidden:
            terms = []
            for (_, mine), (_, its) in zip(states, wanted, strict=True):
                terms.append(state_mismatch(mine, its))
            total = total + hidden * torch.stack(terms).mean()
        return total


def matching_layers(count: int, removed: Collection[int]) -> list[int]:
    """Return for each kept layer the one of ``count`` dense layers whose output it should put out.

    That is the layer before the next kept one, or the last: what removed layers added is now its own to add.
    """
    kept = [index for index in range(count) if index not in removed]
    return [following - 1 for following in kept[1:]] + [count - 1]
