"""The one training loop: linear decay, a counted budget, and checkpoints that a killed run goes on from.

A batch goes through the model in micro-batches, as many blocks at once as memory holds; their gradients add up to the
batch's. Every loss is a mean over blocks of one length, so each micro-batch weighs by its share of the batch: the
result is the same within rounding (but for dropout, which draws anew for each).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elder.data import batch_indices, nth_seed
from elder.model.forward import mixed_precision
from elder.parallel.ranks import rank, total
from elder.parallel.shard import shares, sum_gradients
from elder.progress import meter
from elder.record import Point, Spent
from elder.training.checkpoint import Checkpoint, Schedule, trainable_weights
from elder.training.micro_batch import MicroBatch
from elder.training.optim import Optimizer

# token ids (batch, seq_len) -> scalar, a mean over blocks
LossFunction = Callable[[Tensor], Tensor]
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
        micro_batch: blocks that go through the model at once; None: the batch, halved where memory does not suffice.
    """

    label: str
    seed: int
    compute: torch.dtype
    checkpoint: Path | None = None
    at_step: StepHook | None = None
    micro_batch: MicroBatch | None = None


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
        loss_of: the loss of token ids.
        schedule: steps, batch, rates, seed.
        run: what it runs with.

    Returns:
        What was spent, the same whether the run was interrupted or not. It ends at a loss that is not finite.

    Raises:
        UserError: if memory does not hold a single block.
    """
    micro_batch = run.micro_batch or MicroBatch(run.label, schedule.batch)
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
            if run.at_step:
                run.at_step((step + 1) / schedule.steps)
            chosen = batch_indices(len(blocks), schedule.batch, step, schedule.seed)
            ids = blocks[chosen]
            batch = Batch(ids, loss_of, run.compute, nth_seed(schedule.seed, step))
            loss = micro_batch.attempt(partial(gradients, model, batch))
            factor = rate(step, schedule)
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


@dataclass(frozen=True)
class Batch:
    """The blocks of one step, and what is minimised on them.

    Attributes:
        ids: token ids, (blocks, seq_len) int64.
        loss_of: their loss.
        compute: dtype of the forward pass.
        seed: of dropout: a run that goes on drops out the same.
    """

    ids: Tensor
    loss_of: LossFunction
    compute: torch.dtype
    seed: int


def gradients(model: Any, batch: Batch, at_once: int) -> float:
    """Leave the gradients of one batch in the weights, their norm at most 1.

    Args:
        model: what trains; gradients that it has are dropped.
        batch: the blocks, and their loss.
        at_once: blocks that go through the model at once, of each process's share.

    Returns:
        The loss in nats.
    """
    weights = trainable_weights(model)
    for weight in weights:
        weight.grad = None  # of an attempt that ran out of memory
    torch.manual_seed(batch.seed + rank())
    loss_here = 0.0
    for ids, share in shares(batch.ids, at_once):
        with mixed_precision(model, batch.compute):
            loss = batch.loss_of(ids) * share
        loss.backward()
        loss_here += loss.item()
    sum_gradients(weights)
    torch.nn.utils.clip_grad_norm_(weights, LARGEST_GRADIENT)
    return total(loss_here)
