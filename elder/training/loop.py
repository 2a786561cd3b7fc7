"""The one training loop: linear decay, a counted budget, and checkpoints that a killed run goes on from."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elder.data import batch_indices, nth_seed
from elder.model.forward import mixed_precision
from elder.progress import meter
from elder.record import Point, Spent
from elder.training.checkpoint import Checkpoint, Schedule, trainable_weights
from elder.training.optim import Optimizer

LossFunction = Callable[[Tensor], Tensor]  # token ids (batch, seq_len) -> scalar
StepHook = Callable[
    [float], None
]  # share of the steps that are done once this one is, up to 1
LARGEST_GRADIENT = 1.0  # norm over all weights


@dataclass(frozen=True)
class TrainingRun:
    """What a stage's training runs with, whatever it minimises.

    Attributes:
        label: the stage's name, for the record, and shown with the progress.
        seed: of the order of blocks, of dropout and of adapters.
        compute: dtype of the forward pass.
        checkpoint: file to go on from and to write to every minute; removed by the caller when the stage is done.
        at_step: called before each step with the share of the steps that are done once it is.
    """

    label: str
    seed: int
    compute: torch.dtype
    checkpoint: Path | None = None
    at_step: StepHook | None = None


def rate(step: int, schedule: Schedule) -> float:
    """Return the factor on the learning rate at a step: linear warm-up, then linear decay towards zero."""
    warm = max(1, round(schedule.warmup * schedule.steps))
    rising = (step + 1) / warm
    falling = (schedule.steps - step) / max(1, schedule.steps - warm + 1)
    return min(rising, falling)


def train(
    model: Any,
    blocks: Tensor,
    loss_of: LossFunction,
    schedule: Schedule,
    run: TrainingRun,
) -> Spent:
    """Train the model's trainable weights, in place.

    Args:
        model: any causal language model; weights in float32, computing in ``run.compute``.
        blocks: (samples, seq_len) int64.
        loss_of: the loss of a batch of token ids.
        schedule: steps, batch, rates, seed.
        run: what it runs with.

    Returns:
        What was spent, the same whether the run was interrupted or not. It ends at a loss that is not finite.
    """
    optimizer = Optimizer(
        model, schedule.optimizer, schedule.lr, schedule.relative, schedule.weight_decay
    )
    checkpoint = Checkpoint(run.checkpoint, schedule)
    spent = checkpoint.resume(model, optimizer) or Spent(
        trainable_parameters=sum(weight.numel() for weight in trainable_weights(model))
    )
    model.train()
    with meter(run.label, schedule.steps) as progress:
        for step in range(spent.optimizer_steps, schedule.steps):
            # a resumed run drops out the same
            torch.manual_seed(nth_seed(schedule.seed, step))
            if run.at_step:
                run.at_step((step + 1) / schedule.steps)
            ids = blocks[
                batch_indices(len(blocks), schedule.batch, step, schedule.seed)
            ]
            factor = rate(step, schedule)
            loss = _gradients(model, ids, loss_of, run.compute)
            optimizer.step(factor)
            spent.optimizer_steps += 1
            spent.tokens_seen += ids.numel()
            spent.curve.append(Point(step=step, loss=loss, lr=schedule.lr * factor))
            progress(f"loss {loss:.3f}")
            if not math.isfinite(loss):  # so are the weights now, for good
                break
            checkpoint.save_when_due(model, optimizer, spent)
    model.eval()
    return spent


def _gradients(
    model: Any, ids: Tensor, loss_of: LossFunction, compute: torch.dtype
) -> float:
    """Leave the gradients of one batch in the weights, their norm at most 1; return its loss in nats."""
    with mixed_precision(model, compute):
        loss = loss_of(ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainable_weights(model), LARGEST_GRADIENT)
    return loss.item()
