"""Recovery: train the shallower model on the calibration blocks, by their text or by what the dense model makes of it.

Distillation follows the dense model's next-token distribution, and where asked for also the text itself and the dense
model's hidden states t after the kept layers, whose own are s:

    L = (1 - next_token) KL + next_token LM + hidden * mean over kept layers of ||s - t||^2 / ||t||^2
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from elder import params
from elder.model.forward import logits_of, next_token_losses, observed_logits
from elder.model.layers import find_layers
from elder.training.loop import Spent
from elder.training.losses import distillation_loss, state_mismatch
from elder.training.tune import lr_grid, tune


def recover(
    model: Any,
    dense: Any,
    blocks: torch.Tensor,
    settings: params.Recover,
    seed: int,
    compute: torch.dtype,
    checkpoint: Path | None = None,
    synthetic: torch.Tensor | None = None,
    removed: Collection[int] = (),
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
        removed: layers of the dense model that the shallower one lacks; only ``hidden`` looks at them.

    Returns:
        What was spent, search included.
    """
    depths = (
        matching_layers(len(find_layers(dense)), removed)
        if dense is not None and settings.hidden
        else []
    )

    def next_token(ids: torch.Tensor) -> torch.Tensor:
        return next_token_losses(logits_of(model, ids), ids).mean()

    def distil(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            targets, wanted = observed_logits(dense, ids, depths)
        logits, states = observed_logits(model, ids, range(len(depths)))
        total = (1 - settings.next_token) * distillation_loss(logits, targets)
        if settings.next_token:
            total = total + settings.next_token * next_token_losses(logits, ids).mean()
        if settings.hidden:
            terms = [
                state_mismatch(mine, its)
                for (_, mine), (_, its) in zip(states, wanted, strict=True)
            ]
            total = total + settings.hidden * torch.stack(terms).mean()
        return total

    loss = distil if settings.mode == "distil" else next_token
    budget = settings.epochs * len(blocks)
    if synthetic is not None:
        blocks = torch.cat(
            [synthetic, blocks]
        )  # calibration text last: the slice held out for judging is real text
    grids = lr_grid(settings)
    plan = settings.model_copy(update={"epochs": budget / len(blocks)})
    spent = tune(
        "recover",
        model,
        blocks,
        plan,
        grids,
        lambda _: loss,
        seed,
        compute,
        checkpoint=checkpoint,
    )
    spent.tokens_generated = synthetic.numel() if synthetic is not None else 0
    return spent


def matching_layers(count: int, removed: Collection[int]) -> list[int]:
    """Return for each kept layer the one of ``count`` dense layers whose output it should put out.

    That is the layer before the next kept one, or the last: what removed layers added is now its own to add.
    """
    kept = [index for index in range(count) if index not in removed]
    return [following - 1 for following in kept[1:]] + [count - 1]
