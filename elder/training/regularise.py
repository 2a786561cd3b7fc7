"""ELDeR, stage 2: shrink what the selected layers add to the hidden state, so that it moves into the other layers.

    L_sum = LM(W, X) + lambda2 * sum_{i in P} || f_i(h_i) - h_i ||_q

P is fixed; all weights train, or adapters on them. The norm is taken per token over the hidden dimension, un-squared,
and averaged over tokens.

Beyond the paper, the layers may fade out while the others learn (annealed removal): what they add is multiplied by a
weight that falls from 1 to 0, so that at the end the model computes as if they were gone. The norm is that of what is
left of it.
"""

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
from elder.training.loop import LossFunction, TrainingRun
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
    grids = grids_of(settings)
    if settings.lambda2 == "auto":
        grids |= {"lambda2": LAMBDA2_GRID}

    def loss_with(values: Values) -> LossFunction:
        strength = values["lambda2"] if settings.lambda2 == "auto" else settings.lambda2
        return Regularised(model, removed, settings, strength)

    at_once = micro_batch_of(settings, run.label)

    def loss_without_layers(held_out: Tensor) -> float:
        with skipping(model, removed):
            losses = at_once.attempt(
                partial(block_losses, model, held_out, compute=run.compute)
            )
        return losses.mean().item()

    layers = find_layers(model)
    with LayerControl(nn.ModuleList([layers[index] for index in removed])) as control:

        def fade(done: float) -> None:
            weight = residual_weight(done, settings.anneal)
            control.weights = torch.full((len(removed),), weight)

        wanted = replace(run, micro_batch=at_once)
        if settings.anneal:
            wanted = replace(wanted, at_step=fade)
        objective = Objective(loss_with, grids, loss_without_layers)
        return tune(model, data, settings, objective, wanted)


@dataclass(frozen=True)
class Regularised:
    """The next-token loss and the sum of what the selected layers add, L_sum in the head of this file.

    Attributes:
        model: the dense model.
        removed: the selected layers P.
        settings: which norm.
        strength: lambda2.
    """

    model: Any
    removed: Sequence[int]
    settings: params.Regularise
    strength: float

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the loss of token ids, (batch, seq_len): a scalar."""
        final, states = observed_states(self.model, ids, self.removed)
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


def residual_weight(done: float, anneal: float) -> float:
    """Return the weight of what the selected layers add: from 1 down to 0, once a share ``anneal`` of steps is done."""
    return max(0.0, 1.0 - done / anneal)
