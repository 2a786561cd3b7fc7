"""Checkpoints of a training run: what it had reached, on the disk, so that a killed run goes on from there."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elder.files import whole_file
from elder.record import Spent
from elder.training.optim import Optimizer

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


def trainable_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that training moves, in the order of the model."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class Checkpoint:
    """The checkpoint of one run: trainable weights, the optimiser's state, and what was spent.

    Args:
        path: its file; None keeps no checkpoint. Whoever runs the stage removes it when the stage is done.
        schedule: of the run; the checkpoint of another schedule is not taken up.
    """

    def __init__(self, path: Path | None, schedule: Schedule) -> None:
        self.path, self.schedule = path, schedule
        self.saved = time.monotonic()

    def save_when_due(self, model: Any, optimizer: Optimizer, spent: Spent) -> None:
        """Write the checkpoint, whole or not at all, unless the last one is younger than a minute."""
        from safetensors.torch import save_file

        if self.path is None or time.monotonic() - self.saved <= CHECKPOINT_EVERY:
            return
        tensors = {}
        for index, weight in enumerate(trainable_weights(model)):
            tensors[f"w.{index}"] = weight.detach().contiguous()
        for name, value in optimizer.state().items():
            tensors[f"o.{name}"] = value.contiguous()
        notes = {
            "schedule": json.dumps(asdict(self.schedule)),
            "spent": json.dumps(spent.model_dump()),
        }
        with whole_file(self.path) as new:
            save_file(tensors, new, metadata=notes)
        self.saved = time.monotonic()

    def resume(self, model: Any, optimizer: Optimizer) -> Spent | None:
        """Take up what an interrupted run had reached.

        Returns:
            What it had spent; None where there is no checkpoint of this schedule and these weights that can be read:
            model and optimiser are then as they were.
        """
        from safetensors import safe_open

        weights = trainable_weights(model)
        spent = self._read_spent(weights)
        if spent is None:
            return None
        with safe_open(self.path, "pt") as file:
            with torch.no_grad():
                for index, weight in enumerate(weights):
                    weight.copy_(file.get_tensor(f"w.{index}"))
            names = [name[2:] for name in file.keys() if name.startswith("o.")]  # noqa: SIM118 - it is no dict
            optimizer.load_state(names, lambda name: file.get_tensor(f"o.{name}"))
        return spent

    def _read_spent(self, weights: list[nn.Parameter]) -> Spent | None:
        """Return what the run had spent, if its checkpoint is whole and fits."""
        from safetensors import SafetensorError, safe_open

        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                notes = file.metadata() or {}
                shapes = [
                    file.get_slice(f"w.{index}").get_shape()
                    for index in range(len(weights))
                ]
            schedule = json.loads(notes["schedule"])
            spent = Spent.model_validate(json.loads(notes["spent"]))
        except (SafetensorError, OSError, ValueError, KeyError):
            return None
        fits = shapes == [list(weight.shape) for weight in weights]
        return spent if fits and schedule == asdict(self.schedule) else None
