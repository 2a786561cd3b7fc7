"""ELDeR, stage 2: shrink what the selected layers add to the hidden state, so that it moves into the other layers.

    L_sum = LM(W, X) + lambda2 * sum_{i in P} || f_i(h_i) - h_i ||_q

P is fixed; all weights train, or adapters on them. The norm is taken per token over the hidden dimension, un-squared,
and averaged over tokens.

Beyond the paper, the layers may fade out while the others learn (annealed removal): what they add is multiplied by a
weight that falls from 1 to 0, so that at the end the model computes as if they were gone. The norm is that of what is
left of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elder import params
from elder.model.forward import block_losses, next_token_losses, observed_logits
from elder.model.layers import LayerControl, find_layers, skipping
from elder.training.loop import Spent
from elder.training.losses import residual_norm
from elder.training.tune import lr_grid, tune

LAMBDA2_GRID = (0.001, 0.01, 0.1)


def regularise(
    model: Any,
    removed: Sequence[int],
    blocks: torch.Tensor,
    settings: params.Regularise,
    seed: int,
    compute: torch.dtype,
    checkpoint: Path | None = None,
) -> Spent:
    """Train the whole model, in place, so that the layers in ``removed`` come to do nothing.

    Args:
        model: the dense model, weights in float32.
        removed: the selected layers P.
        blocks: calibration blocks, (samples, seq_len).
        settings: the section ``regularise``.
        seed: of the order of blocks.
        compute: dtype of the forward pass.
        checkpoint: where the run is kept while it goes on.

    Returns:
        What was spent; automatic values are judged by the loss without the layers on held-out blocks.
    """
    grids = lr_grid(settings)
    if settings.lambda2 == "auto":
        grids |= {"lambda2": LAMBDA2_GRID}

    def judge(held: torch.Tensor) -> float:
        with skipping(model, removed):
            return block_losses(model, held, settings.batch, compute).mean().item()

    layers = find_layers(model)
    with LayerControl(nn.ModuleList([layers[index] for index in removed])) as control:

        def fade(done: float) -> None:
            control.weights = torch.full(
                (len(removed),), residual_weight(done, settings.anneal)
            )

        def loss_with(values: dict[str, float]) -> Any:
            lambda2 = values["lambda2"] if settings.lambda2 == "auto" else settings.lambda2

            def loss(ids: torch.Tensor) -> torch.Tensor:
                logits, seen = observed_logits(model, ids, removed)
                terms = [
                    residual_norm(*states, settings.norm, settings.relative) for states in seen
                ]
                return (
                    next_token_losses(logits, ids).mean() + lambda2 * torch.stack(terms).sum()
                )

            return loss

        at_step = fade if settings.anneal else None
        return tune(
            "regularise",
            model,
            blocks,
            settings,
            grids,
            loss_with,
            seed,
            compute,
            judge,
            checkpoint,
            at_step,
        )


def residual_weight(done: float, anneal: float) -> float:
    """Return the weight of what the selected layers add: from 1 down to 0, once a share ``anneal`` of steps is done."""
    return max(0.0, 1.0 - done / anneal)
