"""Automatic choices: hold out a slice of the calibration blocks, try a few values briefly, keep what loses least."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elder.errors import UserError
from elder.parallel.shard import own_part
from elder.process import trim_memory
from elder.progress import say
from elder.record import Spent, Trial

HELD_OUT_SHARE = 0.125
Values = dict[str, Any]  # {name: value to try, a number or a name}
TryOut = Callable[[Values], tuple[float, Spent]]  # -> (held-out loss, what it took)
# {index: loss} of what was tried, how many there are -> index
Order = Callable[[Mapping[int, float], int], int | None]


def hold_out(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Split blocks into those to fit on and those to judge by: the last eighth, at least one."""
    held = max(1, round(len(blocks) * HELD_OUT_SHARE))
    return blocks[:-held], blocks[-held:]


def every(losses: Mapping[int, float], count: int) -> int | None:
    """Return which of some candidates is tried next: one after the other."""
    return len(losses) if len(losses) < count else None


def downhill(losses: Mapping[int, float], count: int) -> int | None:
    """Return which of some candidates in ascending order is tried next: from the middle on, to where less is lost.

    Args:
        losses: {index of one that was tried: its loss}.
        count: of all.

    Returns:
        An index; None once both neighbours of the best lose more.
    """
    middle = (count - 1) // 2
    if middle not in losses:
        return middle
    for step in (1, -1):
        best = middle
        while 0 <= best + step < count:
            if best + step not in losses:
                return best + step
            if losses[best + step] >= losses[best]:
                break
            best += step
        if best != middle:
            return None
    return None


def search(
    stage: str,
    candidates: Sequence[Values],
    try_out: TryOut,
    then: Callable[[Values], Iterable[Values]] = lambda best: (),
    order: Order = every,
) -> tuple[Values, Spent]:
    """Try each candidate and return the one with the lowest held-out loss, and what the whole search took.

    A trial whose loss is not finite never wins; its record says None.

    Args:
        stage: its name, for the record.
        candidates: what is tried first.
        try_out: tries one.
        then: what is tried after that, given the best of the first.
        order: which of the first is next.

    Raises:
        UserError: if no trial ends with a finite loss.
    """
    tried: list[Values] = []
    total = Spent()
    trials: list[Trial] = []

    def attempt(values: Values) -> float:
        loss, spent = try_out(values)
        tried.append(values)
        total.tokens_seen += spent.tokens_seen
        total.optimizer_steps += spent.optimizer_steps
        trials.append(_trial(stage, values, loss, spent.tokens_seen))
        say(f"{stage}: {in_words(values)} gives held-out loss {loss:.4f}")
        return loss if math.isfinite(loss) else math.inf

    losses: dict[int, float] = {}
    while (index := order(losses, len(candidates))) is not None:
        losses[index] = attempt(candidates[index])
    best = _lowest(trials)
    for values in then(tried[best]) if best is not None else ():
        attempt(values)
    best = _lowest(trials)
    if best is None:
        names = ", ".join(tried[-1])
        raise UserError(
            f"{stage}: no value tried gave a finite loss; set {names} of {stage} by hand"
        )
    for index, trial in enumerate(trials):
        told = trial.model_copy(update={"chosen": index == best})
        total.search.append(told)
    return tried[best], total


def in_words(values: Values) -> str:
    """Return values as ``optimizer muon, lr 0.01``."""
    said = []
    for name, value in values.items():
        said.append(f"{name} {value if isinstance(value, str) else format(value, 'g')}")
    return ", ".join(said)


def _trial(stage: str, values: Values, loss: float, tokens: int) -> Trial:
    kept = loss if math.isfinite(loss) else None
    record = {
        "stage": stage,
        "held_out_loss": kept,
        "tokens": tokens,
        **values,
    }
    return Trial.model_validate(record)


def _lowest(trials: list[Trial]) -> int | None:
    """Return the index of the lowest loss, the first of equals; None if no trial has any."""
    best = None
    lowest = math.inf
    for index, trial in enumerate(trials):
        loss = trial.held_out_loss
        if loss is not None and loss < lowest:
            best = index
            lowest = loss
    return best


class Snapshot:
    """A copy of the trainable weights on the disk, or of this process's part of them, to start each trial from.

    Weights that came from a 16-bit checkpoint, and have not moved yet, take 16 bits here, too.

    Args:
        model: whose weights are copied.
        path: of the file (.safetensors); one that is there is replaced.
    """

    def __init__(self, model: Any, path: Path) -> None:
        from safetensors.torch import save_file

        self.path = path
        weights = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                own = own_part(parameter.detach()).contiguous()
                half = own.bfloat16()
                exact = torch.equal(half.to(own.dtype), own)
                weights[name] = half if exact else own
        save_file(weights, path)

    @torch.no_grad()
    def restore(self, model: Any) -> None:
        """Put the copied weights back."""
        from safetensors import safe_open

        # what a trial left free lies between what the next needs, and beside the pages of the file
        trim_memory()
        with safe_open(self.path, "pt") as file:
            kept = set(file.keys())
            for name, parameter in model.named_parameters():
                if name in kept:
                    own_part(parameter).copy_(file.get_tensor(name))
