"""Recovery: train the shallower model on the calibration blocks, by their text or by the dense model's predictions."""

from pathlib import Path
from typing import Any

import torch

from elder import params
from elder.forward import logits_of, next_token_losses
from elder.losses import distillation_loss
from elder.train import Spent
from elder.tune import lr_grid, tune


def recover(
    model: Any,
    dense: Any,
    blocks: torch.Tensor,
    settings: params.Recover,
    seed: int,
    compute: torch.dtype,
    checkpoint: Path | None = None,
    synthetic: torch.Tensor | None = None,
) -> Spent:
    """Train the shallower model, in place.

    Args:
        model: the model after removal, weights in float32.
        dense: the model before, frozen; only ``distil`` looks at it.
        blocks: calibration blocks, (samples, seq_len).
        settings: the section ``recover``.
        seed: of the order of blocks.
        compute: dtype of the forward pass.
        checkpoint: where the run is kept while it goes on.
        synthetic: blocks that the dense model wrote, (count, seq_len), to learn from as well.

    Returns:
        What was spent, search included.
    """

    def next_token(ids: torch.Tensor) -> torch.Tensor:
        return next_token_losses(logits_of(model, ids), ids).mean()

    def distil(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            targets = logits_of(dense, ids)
        return distillation_loss(logits_of(model, ids), targets)

    loss = distil if settings.mode == "distil" else next_token
    budget = settings.epochs * len(blocks)
    if synthetic is not None:
        blocks = torch.cat([synthetic, blocks])  # calibration text last: the slice held out for judging is real text
    grids = lr_grid(settings)
    plan = settings.model_copy(update={"epochs": budget / len(blocks)})
    spent = tune("recover", model, blocks, plan, grids, lambda _: loss, seed, compute, checkpoint=checkpoint)
    spent.tokens_generated = synthetic.numel() if synthetic is not None else 0
    return spent
