"""What a compensation is given and what it returns, the gaps that a removal leaves, and the registry by name."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elder import params
from elder.errors import UserError, nearest
from elder.model.forward import block_losses
from elder.training.search import hold_out

NONE = "none"


@dataclass(frozen=True)
class Repair:
    """What a compensation works on.

    Attributes:
        model: the model after removal, in eval mode; its weights are changed in place, its shapes are not.
        dense: the model as it was just before removal, frozen; on the same device, in the same dtype.
        removed: layers of ``dense`` that went.
        blocks: calibration blocks, (samples, seq_len), int64.
        settings: the section ``compensate``.
    """

    model: Any
    dense: Any
    removed: tuple[int, ...]
    blocks: torch.Tensor
    settings: params.Compensate


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


Compensation = Callable[
    [Repair], dict[str, Any]
]  # changes the model in place; returns what it found, as plain JSON
COMPENSATIONS: dict[str, Compensation] = {}


def register(name: str) -> Callable[[Compensation], Compensation]:
    """Make a compensation known by name; two of one name are a mistake."""

    def add(compensation: Compensation) -> Compensation:
        if name in COMPENSATIONS or name == NONE:
            raise ValueError(f"a compensation named {name!r} is registered already")
        COMPENSATIONS[name] = compensation
        return compensation

    return add


def get_compensation(name: str) -> Compensation | None:
    """Return the compensation of a name; for ``none``, None.

    Raises:
        UserError: for an unknown name, with the nearest valid one.
    """
    if name == NONE:
        return None
    if name not in COMPENSATIONS:
        raise UserError(
            f"there is no compensation {name!r}; {nearest(name, [*COMPENSATIONS, NONE])}"
        )
    return COMPENSATIONS[name]


@torch.no_grad()
def compensate(repair: Repair) -> dict[str, Any]:
    """Run the compensation that the settings name; returns its record, with the next-token loss before and after.

    Raises:
        UserError: for an unknown name, or a model that cannot be compensated so.
    """
    compensation = get_compensation(repair.settings.method)
    if compensation is None:
        return {"method": NONE}
    _, held = hold_out(repair.blocks)

    def loss() -> float | None:
        found = block_losses(repair.model, held, repair.settings.batch).mean().item()
        return found if math.isfinite(found) else None

    before = loss()
    found = compensation(repair)
    return {
        "method": repair.settings.method,
        **found,
        "held_out_loss": {"before": before, "after": loss()},
    }


def gaps(removed: Sequence[int], count: int) -> list[Gap]:
    """Return the runs of neighbouring layers among ``removed`` of ``count``, from the first to the last."""
    gone, found = set(removed), []
    for start in sorted(gone):
        if start - 1 not in gone:
            stop = next(index for index in range(start, count + 1) if index not in gone)
            found.append(Gap(start, stop, start - sum(index < start for index in gone)))
    return found
