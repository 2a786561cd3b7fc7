"""What a compensation is given and what it returns, the gaps that a removal leaves, and the catalogue by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from elder.model.forward import block_losses
from elder.params.catalogue import COMPENSATIONS, NONE, Catalogue
from elder.record import Json, Spent
from elder.training.search import hold_out

S = TypeVar("S")  # the settings that a compensation is registered with


@dataclass(frozen=True)
class Pruned(Generic[S]):
    """A model that layers were taken out of, as a compensation finds it.

    Attributes:
        model: the model after removal, in eval mode; its weights are changed in place, its shapes are not.
        dense: the model as it was just before removal, frozen; on the same device, in the same dtype.
        removed: layers of ``dense`` that went.
        blocks: calibration blocks, (samples, seq_len), int64.
        settings: the compensation's own.
        batch: blocks in a batch.
        seed: of everything random.
        budget: tokens that the recovery will have, training here included; None where nothing is recovered.
        spent: of the budget for training; counted up by a compensation that trains something.
    """

    model: Any
    dense: Any
    removed: tuple[int, ...]
    blocks: torch.Tensor
    settings: S
    batch: int
    seed: int = 0
    budget: int | None = None
    spent: Spent = field(default_factory=Spent)


@dataclass(frozen=True)
class Gap:
    """Neighbouring layers ``start`` to ``stop - 1`` of the dense model that went.

    Attributes:
        start: first of them.
        stop: the dense layer after them.
        place: kept layers before them: the state that met layer ``start`` now meets layer ``place`` of the model.
    """

    start: int
    stop: int
    place: int

    @property
    def layers(self) -> list[int]:
        """Return the layers that went."""
        return list(range(self.start, self.stop))


@dataclass(frozen=True)
class Group:
    """Neighbouring layers of the dense model that one kept layer stands for: itself, and those that went beside it.

    Attributes:
        kept: the dense layer that stayed.
        place: its index in the shallower model.
        members: all of them, ascending: those that went right after it, and for the first kept layer those before it.
    """

    kept: int
    place: int
    members: tuple[int, ...]

    @property
    def removed(self) -> list[int]:
        """Return the layers that went."""
        return [index for index in self.members if index != self.kept]


# changes the model in place; returns what it found
Compensation = Callable[[Pruned[Any]], dict[str, Json]]
CATALOGUE: Catalogue[Compensation] = COMPENSATIONS
register = CATALOGUE.register


def refuse_unfit(name: str, dense: Any, blocks: torch.Tensor) -> None:
    """Refuse, before any work, a compensation that there is not, or that can do nothing for a model.

    Raises:
        UserError: as the compensation would once layers are gone.
    """
    CATALOGUE.refuse_unknown(name)
    check = CATALOGUE.find(name).check if name != NONE else None
    if check:
        check(dense, blocks[:1])


@torch.no_grad()
def compensate(name: str, pruned: Pruned[Any]) -> dict[str, Json]:
    """Run a compensation; returns its record, with the next-token loss before and after.

    Raises:
        UserError: for an unknown name, or a model that cannot be compensated so.
    """
    if name == NONE:
        return {"method": NONE}
    compensation = CATALOGUE.find(name).function
    _, held = hold_out(pruned.blocks)

    def loss() -> float | None:
        value = block_losses(pruned.model, held, pruned.batch).mean().item()
        return value if math.isfinite(value) else None

    before = loss()
    changes = compensation(pruned)
    return {
        "method": name,
        **changes,
        "held_out_loss": {"before": before, "after": loss()},
    }


def find_gaps(removed: Sequence[int], count: int) -> list[Gap]:
    """Return the runs of neighbouring layers among ``removed`` of ``count``, from the first to the last."""
    gone, runs = set(removed), []
    for start in sorted(gone):
        if start - 1 not in gone:
            stop = next(index for index in range(start, count + 1) if index not in gone)
            before = sum(index < start for index in gone)
            runs.append(Gap(start, stop, place=start - before))
    return runs


def find_groups(removed: Sequence[int], count: int) -> list[Group]:
    """Return the kept layers of ``count`` that stand for others, from the first to the last."""
    gone = set(removed)
    kept = [index for index in range(count) if index not in gone]
    starts, stops = [0, *kept[1:]], [*kept[1:], count]
    groups = []
    for place, (index, start, stop) in enumerate(zip(kept, starts, stops, strict=True)):
        if stop - start > 1:
            groups.append(Group(index, place, tuple(range(start, stop))))
    return groups
