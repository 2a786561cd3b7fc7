"""ELDeR, stage 2: shrink what the selected layers add to the hidden state, so that it moves into the other layers.

    L_sum = LM(W, X) + lambda2 * sum_{i in P} || f_i(h_i) - h_i ||_q

P is fixed; all weights train, or adapters on them. The norm is taken per token over the hidden dimension, un-squared,
and averaged over tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from elder import params
from elder.forward import block_losses, logits_of, next_token_losses
from elder.layers import LayerControl, find_layers, skipping
from elder.losses import residual_norm
from elder.train import Spent
from elder.tune import lr_grid, tune

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
    selected = set(removed)
    grids = lr_grid(settings)
    if settings.lambda2 == "auto":
        grids |= {"lambda2": LAMBDA2_GRID}

    def judge(held: torch.Tensor) -> float:
        with skipping(model, selected):
            return block_losses(model, held, settings.batch, compute).mean().item()

    with LayerControl(find_layers(model)) as control:
        terms: list[torch.Tensor] = []

        def observe(index: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
            if index in selected and torch.is_grad_enabled():
                terms.append(residual_norm(entering, leaving, settings.norm, settings.relative))

        control.observe = observe

        def loss_with(values: dict[str, float]) -> Any:
            lambda2 = values["lambda2"] if settings.lambda2 == "auto" else settings.lambda2

            def loss(ids: torch.Tensor) -> torch.Tensor:
                terms.clear()
                total = next_token_losses(logits_of(model, ids), ids).mean()
                return total + lambda2 * torch.stack(terms).sum()

            return loss

        return tune("regularise", model, blocks, settings, grids, loss_with, seed, compute, judge, checkpoint)
