"""The one training loop: linear decay, a counted budget, and checkpoints that a killed run goes on from."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from elder.data import batch_indices
from elder.files import whole_file
from elder.model.forward import mixed_precision
from elder.progress import meter
from elder.training.optim import Optimizer

LossFunction = Callable[[torch.Tensor], torch.Tensor]  # token ids (batch, seq_len) -> scalar
StepHook = Callable[[float], None]  # share of the steps that are done once this one is, up to 1
CHECKPOINT_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Schedule:
    """How one training run goes.

    Attributes:
        steps: optimiser steps.
        batch: blocks in a step.
        optimizer: ``adamw`` or ``muon``.
        lr: peak learning rate.
        relative: ``lr`` is a share of each weight tensor's root mean square, so that it holds for every width.
        warmup: share of the steps with a rising rate; the rest decays linearly to zero.
        weight_decay: decoupled.
        seed: of the order of blocks.
    """

    steps: int
    batch: int
    optimizer: str
    lr: float
    relative: bool
    warmup: float
    weight_decay: float
    seed: int


@dataclass
class Spent:
    """The budget a training used, search included.

    Attributes:
        tokens_seen: tokens passed forward and backward.
        optimizer_steps: steps taken.
        trainable_parameters: parameters that moved.
        tokens_generated: tokens that the dense model wrote, for the shallower one to learn from.
        curve: [{step, loss, lr}] of the run that was kept.
        search: one record for each trial of an automatic choice.
    """

    tokens_seen: int = 0
    optimizer_steps: int = 0
    trainable_parameters: int = 0
    tokens_generated: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    search: list[dict[str, Any]] = field(default_factory=list)


def rate(step: int, schedule: Schedule) -> float:
    """Return the factor on the learning rate at a step: linear warm-up, then linear decay towards zero."""
    warm = max(1, round(schedule.warmup * schedule.steps))
    return min((step + 1) / warm, (schedule.steps - step) / max(1, schedule.steps - warm + 1))


def train(
    model: Any,
    blocks: torch.Tensor,
    loss_of: LossFunction,
    schedule: Schedule,
    compute: torch.dtype,
    label: str,
    checkpoint: Path | None = None,
    at_step: StepHook | None = None,
) -> Spent:
    """Train the model's trainable weights, in place.

    Args:
        model: any causal language model; weights in float32, computing in ``compute``.
        blocks: (samples, seq_len) int64.
        loss_of: the loss of a batch of token ids.
        schedule: steps, batch, rates, seed.
        compute: dtype of the forward pass.
        label: shown with the progress.
        checkpoint: file to resume from and to write to every minute; removed by the caller when the stage is done.
        at_step: called before each step.

    Returns:
        What was spent, the same whether the run was interrupted or not.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = Optimizer(
        model, schedule.optimizer, schedule.lr, schedule.relative, schedule.weight_decay
    )
    spent = Spent(trainable_parameters=sum(p.numel() for p in trainable))
    start = _resume(checkpoint, model, optimizer, schedule, spent)
    saved = time.monotonic()
    model.train()
    with meter(label, schedule.steps) as progress:
        for step in range(start, schedule.steps):
            torch.manual_seed(
                schedule.seed * 100_003 + step
            )  # dropout, too, is the same in a resumed run
            if at_step:
                at_step((step + 1) / schedule.steps)
            ids = blocks[batch_indices(len(blocks), schedule.batch, step, schedule.seed)]
            with mixed_precision(model, compute):
                loss = loss_of(ids)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step(rate(step, schedule))
            spent.optimizer_steps += 1
            spent.tokens_seen += ids.numel()
            spent.curve.append(
                {"step": step, "loss": loss.item(), "lr": schedule.lr * rate(step, schedule)}
            )
            progress(f"loss {loss.item():.3f}")
            if checkpoint and time.monotonic() - saved > CHECKPOINT_EVERY:
                _save(checkpoint, model, optimizer, schedule, spent)
                saved = time.monotonic()
    model.eval()
    return spent


def _save(
    path: Path, model: Any, optimizer: Optimizer, schedule: Schedule, spent: Spent
) -> None:
    """Write trainable weights and optimiser state by rename, so that a reader finds the last whole checkpoint."""
    from safetensors.torch import save_file

    tensors = {
        f"w.{i}": p.detach()
        for i, p in enumerate(p for p in model.parameters() if p.requires_grad)
    }
    tensors |= {f"o.{name}": value for name, value in optimizer.state().items()}
    notes = {"schedule": json.dumps(asdict(schedule)), "spent": json.dumps(asdict(spent))}
    with whole_file(path) as new:
        save_file(
            {key: value.contiguous() for key, value in tensors.items()}, new, metadata=notes
        )


def _resume(
    path: Path | None, model: Any, optimizer: Optimizer, schedule: Schedule, spent: Spent
) -> int:
    """Load a checkpoint of the same schedule, if there is one; return the step to go on from."""
    from safetensors import safe_open

    if path is None or not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        notes = file.metadata()
        if json.loads(notes["schedule"]) != asdict(schedule):
            return 0
        with torch.no_grad():
            for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
                parameter.copy_(file.get_tensor(f"w.{i}"))
        names = [key.removeprefix("o.") for key in file.keys() if key.startswith("o.")]  # noqa: SIM118 - it is no dict
        optimizer.load_state(names, lambda name: file.get_tensor(f"o.{name}"))
    for key, value in json.loads(notes["spent"]).items():
        setattr(spent, key, value)
    return spent.optimizer_steps
