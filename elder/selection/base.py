"""What a selection method is given and what it returns, and the catalogue that finds it by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from elder.errors import UserError
from elder.model.finite import NotFiniteError, refuse_broken_states, refuse_not_finite
from elder.params.catalogue import SELECTIONS, Catalogue
from elder.record import Trial

S = TypeVar("S")  # the settings that a method is registered with


@dataclass(frozen=True)
class Problem(Generic[S]):
    """What a method chooses from.

    Attributes:
        model: the dense model, frozen, in eval mode; a method leaves it as it found it.
        blocks: calibration blocks, (samples, seq_len), int64.
        count: how many layers go.
        protected: layers that must stay.
        settings: the method's own.
        seed: of everything random.
        forward_batch: blocks in a batch where layers are only looked at.
        write: lets the model write as many blocks of its own, (count, seq_len) int64; None: that would take too long.
    """

    model: Any
    blocks: torch.Tensor
    count: int
    protected: frozenset[int]
    settings: S
    seed: int
    forward_batch: int
    write: Callable[[int], torch.Tensor] | None = None


@dataclass(frozen=True)
class Round:
    """One round of a selection.

    Attributes:
        removed: which went.
        values: the score of each layer, None where it was not offered.
        checked: (layer, loss without it) of the layers that the scores had shortlisted, where the loss decided.
        blocks: (layer, blocks that it was tried on) of a race; of those on the most, the lowest loss decided.
    """

    removed: tuple[int, ...]
    values: tuple[float | None, ...]
    checked: tuple[tuple[int, float], ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Selection:
    """Which layers go, and why.

    Attributes:
        removed: layer indices of the dense model, in order of removal.
        score: what the values of the rounds are; the layer with the lowest goes.
        rounds: one for each time that layers were scored.
        tokens_seen: tokens passed through training, forward and backward; 0 for methods that only look.
        optimizer_steps: steps on the layer weights.
        search: one record for each trial of an automatic choice.
        tokens_generated: tokens that the dense model wrote, for layers to be judged on.
        learnt: whether the values are weights of layers that were learnt, and not scores that were measured.
    """

    removed: tuple[int, ...]
    score: str
    rounds: tuple[Round, ...]
    tokens_seen: int = 0
    optimizer_steps: int = 0
    search: tuple[Trial, ...] = field(default=())
    learnt: bool = False
    tokens_generated: int = 0


Method = Callable[[Problem[Any]], Selection]
METHODS: Catalogue[Method] = SELECTIONS
register = METHODS.register


def get_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        UserError: for an unknown name, with the nearest valid one.
    """
    return METHODS.find(name).function


def run_method(name: str, problem: Problem[Any]) -> Selection:
    """Choose layers by a method, of a model whose states are finite.

    Raises:
        UserError: for an unknown name, for states or scores that are not finite, and whatever the method refuses.
    """
    method = get_method(name)
    # at once, not after all the work
    refuse_broken_states(problem.model, problem.blocks[:1])
    try:
        return method(problem)
    except NotFiniteError:
        refuse_broken_states(problem.model, problem.blocks, problem.forward_batch)
        raise


def offered(
    problem: Problem[Any], count: int, gone: set[int] | frozenset[int] = frozenset()
) -> list[int]:
    """Return the layers of ``count`` that may still go.

    Raises:
        UserError: if fewer may go than are asked for.
    """
    alive = [
        index
        for index in range(count)
        if index not in problem.protected and index not in gone
    ]
    wanted = problem.count - len(gone)
    if len(alive) < wanted:
        raise UserError(
            f"{problem.count} layers should go, but with {sorted(problem.protected)} protected only "
            f"{len(alive) + len(gone)} of {count} may; protect fewer or remove fewer"
        )
    return alive


def lowest(values: list[float | None], count: int) -> tuple[int, ...]:
    """Return the indices of the ``count`` lowest values, lowest first, the first of equals; None is never chosen.

    Raises:
        UserError: for a value that is not finite.
    """
    present: list[tuple[float, int]] = []
    for index, value in enumerate(values):
        if value is not None:
            refuse_not_finite(value, f"the score of layer {index}")
            present.append((value, index))
    return tuple(index for _, index in sorted(present)[:count])
