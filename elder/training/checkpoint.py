"""Checkpoints of a training run: what it had reached, on the disk, so that a killed run goes on from there."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elder.files import whole_file
from elder.parallel.checkpoint import read_notes, read_parts, write_parts
from elder.parallel.ranks import count, told
from elder.parallel.shard import part_like
from elder.record import Spent
from elder.training.optim import Optimizer

CHECKPOINT_EVERY = 60.0  # seconds
SHAPES = (
    "shapes"  # in the notes of several processes: {name: shape of the whole tensor}
)
Notes = Mapping[str, Any]


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


def parts_of(path: Path) -> Path:
    """Return the folder in which several processes keep what one keeps in a file."""
    return path.with_name(f"{path.name}.parts")


def remove_checkpoint(path: Path) -> None:
    """Remove the checkpoint of one process and that of several."""
    path.unlink(missing_ok=True)
    shutil.rmtree(parts_of(path), ignore_errors=True)


class Checkpoint:
    """The checkpoint of one run: trainable weights, the optimiser's state, and what was spent.

    One process writes a file; several write a folder beside it, each its own parts. Any number of them reads either.

    Args:
        path: its file; None keeps no checkpoint. Whoever runs the stage removes it when the stage is done.
        schedule: of the run; the checkpoint of another schedule is not taken up.
    """

    def __init__(self, path: Path | None, schedule: Schedule) -> None:
        self.path, self.schedule = path, schedule
        self.saved = time.monotonic()

    def save_when_due(self, model: Any, optimizer: Optimizer, spent: Spent) -> None:
        """Write the checkpoint, whole or not at all, unless the last one is younger than a minute."""
        if self.path is None:
            return
        if not told(time.monotonic() - self.saved > CHECKPOINT_EVERY):
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
        if count() > 1:
            shapes = {name: list(value.shape) for name, value in tensors.items()}
            write_parts(parts_of(self.path), tensors, notes | {SHAPES: shapes})
        else:
            _write_file(self.path, tensors, notes)
        self.saved = time.monotonic()

    def resume(self, model: Any, optimizer: Optimizer) -> Spent | None:
        """Take up what an interrupted run had reached.

        Returns:
            What it had spent; None where there is no checkpoint of this schedule and these weights that can be read:
            model and optimiser are then as they were.
        """
        if self.path is None:
            return None
        weights = trainable_weights(model)
        in_file, in_parts = told((self._in_file(weights), self._in_parts(weights)))
        if in_parts and (not in_file or steps_of(in_parts) > steps_of(in_file)):
            _read_parts(parts_of(self.path), weights, optimizer)
            return in_parts
        if in_file:
            _read_file(self.path, weights, optimizer)
        return in_file

    def _in_file(self, weights: list[nn.Parameter]) -> Spent | None:
        """Return what the run had spent by its file, if that is whole and fits."""
        from safetensors import SafetensorError, safe_open

        assert self.path is not None
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                notes = file.metadata() or {}
                shapes = [
                    file.get_slice(f"w.{index}").get_shape()
                    for index in range(len(weights))
                ]
            return self._fitting(notes, shapes, weights)
        except (SafetensorError, OSError, ValueError, KeyError):
            return None

    def _in_parts(self, weights: list[nn.Parameter]) -> Spent | None:
        """Return what the run had spent by its folder, if that is whole and fits."""
        assert self.path is not None
        notes = read_notes(parts_of(self.path))
        if notes is None:
            return None
        try:
            shapes = [notes[SHAPES][f"w.{index}"] for index in range(len(weights))]
            return self._fitting(notes, shapes, weights)
        except (ValueError, KeyError, TypeError):
            return None

    def _fitting(
        self, notes: Notes, shapes: list[list[int]], weights: list[nn.Parameter]
    ) -> Spent | None:
        """Return what a run had spent, if it is this one."""
        schedule = json.loads(notes["schedule"])
        spent = Spent.model_validate(json.loads(notes["spent"]))
        fits = shapes == [list(weight.shape) for weight in weights]
        return spent if fits and schedule == asdict(self.schedule) else None


def steps_of(spent: Spent) -> int:
    """Return how far a run had come."""
    return spent.optimizer_steps


def _write_file(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with whole_file(path) as new:
        save_file(tensors, new, metadata=notes)


@torch.no_grad()
def _read_file(path: Path, weights: list[nn.Parameter], optimizer: Optimizer) -> None:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for index, weight in enumerate(weights):
            weight.copy_(part_like(file.get_tensor(f"w.{index}"), weight))
        names = [name[2:] for name in file.keys() if name.startswith("o.")]  # noqa: SIM118 - it is no dict
        optimizer.load_state(names, lambda name: file.get_tensor(f"o.{name}"))


def _read_parts(
    folder: Path, weights: list[nn.Parameter], optimizer: Optimizer
) -> None:
    notes = read_notes(folder)
    assert notes is not None
    wanted = {f"w.{index}": weight.detach() for index, weight in enumerate(weights)}
    state = {}
    for key, shape in notes[SHAPES].items():
        if key.startswith("o."):
            state[key[2:]] = optimizer.room_for(key[2:], shape)
    wanted |= {f"o.{name}": value for name, value in state.items()}
    read_parts(folder, wanted)
    optimizer.load_state(state, state.__getitem__)
