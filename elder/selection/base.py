"""What a selection method is given and what it returns, and the registry that finds it by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from elder import params
from elder.errors import UserError, nearest
from elder.record import Trial


@dataclass(frozen=True)
class Problem:
    """What a method chooses from.

    Attributes:
        model: the dense model, frozen, in eval mode; a method leaves it as it found it.
        blocks: calibration blocks, (samples, seq_len), int64.
        count: how many layers go.
        protected: layers that must stay.
        settings: the section ``select``.
        seed: of everything random.
    """

    model: Any
    blocks: torch.Tensor
    count: int
    protected: frozenset[int]
    settings: params.Select
    seed: int


@dataclass(frozen=True)
class Round:
    """One round of a selection.

    Attributes:
        removed: which went.
        values: the score of each layer, None where it was not offered.
        checked: (layer, loss without it) of the layers that the scores had shortlisted, where the loss decided.
    """

    removed: tuple[int, ...]
    values: tuple[float | None, ...]
    checked: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which layers go, and why.

    Attributes:
        removed: layer indices of the dense model, in order of removal.
        score: what the values of the rounds are; the layer with the lowest goes.
        rounds: one for each time that layers were scored.
        tokens_seen: tokens passed through training, forward and backward; 0 for methods that only look.
        optimizer_steps: steps on the layer weights.
    """

    removed: tuple[int, ...]
    score: str
    rounds: tuple[Round, ...]
    tokens_seen: int = 0
    optimizer_steps: int = 0
    search: tuple[Trial, ...] = field(default=())


Method = Callable[[Problem], Selection]
METHODS: dict[str, Method] = {}


def register(name: str) -> Callable[[Method], Method]:
    """Make a method known by name; two of one name are a mistake."""

    def add(method: Method) -> Method:
        if name in METHODS:
            raise ValueError(f"a selection method named {name!r} is registered already")
        METHODS[name] = method
        return method

    return add


def get_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        UserError: for an unknown name, with the nearest valid one.
    """
    if name not in METHODS:
        raise UserError(f"there is no selection method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


def offered(
    problem: Problem, count: int, gone: set[int] | frozenset[int] = frozenset()
) -> list[int]:
    """Return the layers of ``count`` that may still go.

    Raises:
        UserError: if fewer may go than are asked for.
    """
    alive = [
        index for index in range(count) if index not in problem.protected and index not in gone
    ]
    wanted = problem.count - len(gone)
    if len(alive) < wanted:
        raise UserError(
            f"{problem.count} layers should go, but with {sorted(problem.protected)} protected only "
            f"{len(alive) + len(gone)} of {count} may; protect fewer or remove fewer"
        )
    return alive


def lowest(values: list[float | None], count: int) -> tuple[int, ...]:
    """Return the indices of the ``count`` lowest values, lowest first, the first of equals; None is never chosen."""
    present = [(value, index) for index, value in enumerate(values) if value is not None]
    return tuple(index for _, index in sorted(present)[:count])
