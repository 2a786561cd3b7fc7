"""Automatic choices: hold out a slice of the calibration blocks, try a few values briefly, keep what loses least."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from elder.errors import UserError
from elder.progress import say
from elder.training.loop import Spent

HELD_OUT_SHARE = 0.125
Trial = Callable[
    [dict[str, float]], tuple[float, Spent]
]  # values to try -> (held-out loss, what it took)


def hold_out(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split blocks into those to fit on and those to judge by: the last eighth, at least one."""
    held = max(1, round(len(blocks) * HELD_OUT_SHARE))
    return blocks[:-held], blocks[-held:]


def search(
    stage: str, candidates: Iterable[dict[str, float]], trial: Trial
) -> tuple[dict[str, float], Spent]:
    """Try each candidate and return the one with the lowest held-out loss, and what the whole search took.

    A trial whose loss is not finite never wins; its record says None.

    Raises:
        UserError: if no trial ends with a finite loss.
    """
    total = Spent()
    best: tuple[float, int, dict[str, float]] | None = None
    for index, values in enumerate(candidates):
        loss, spent = trial(values)
        total.tokens_seen += spent.tokens_seen
        total.optimizer_steps += spent.optimizer_steps
        kept = loss if math.isfinite(loss) else None
        total.search.append(
            {"stage": stage, **values, "held_out_loss": kept, "tokens": spent.tokens_seen}
        )
        say(
            f"{stage}: {', '.join(f'{k} {v:g}' for k, v in values.items())} gives held-out loss {loss:.4f}"
        )
        if kept is not None and (best is None or kept < best[0]):
            best = (kept, index, values)
    if best is None:
        raise UserError(
            f"{stage}: no value tried gave a finite loss; set {', '.join(values)} of {stage} by hand"
        )
    for index, record in enumerate(total.search):
        record["chosen"] = index == best[1]
    return best[2], total


class Snapshot:
    """A copy of the trainable weights on the CPU, to start each trial from the same place."""

    def __init__(self, model: Any) -> None:
        self.weights = {
            n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def restore(self, model: Any) -> None:
        """Put the copied weights back."""
        for name, parameter in model.named_parameters():
            if name in self.weights:
                parameter.copy_(self.weights[name])
