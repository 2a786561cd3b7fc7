"""Which of several processes this one is, and how they share out work. With one process, nothing here does anything.

All processes run the same code on the same inputs, in step: a divided model can only be run by all of them at once. So
work is shared out in items that run the model equally often, and what decides about the next step is the same in all.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
# a process that waits for another one's work waits as long as it takes: whoever started them ends all when one dies
FOR_EVER = timedelta(days=365)


@dataclass
class _Place:
    """Where this process is among the others, which are none until `join`."""

    rank: int = 0
    count: int = 1


_here = _Place()


def rank() -> int:
    """Return which process this is, counted from 0."""
    return _here.rank


def count() -> int:
    """Return how many processes there are."""
    return _here.count


def is_first() -> bool:
    """Say whether this process is the one that writes files and speaks."""
    return _here.rank == 0


def was_started_as_rank() -> bool:
    """Say whether `elder.parallel.launch` or torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join(device_type: str) -> None:
    """Meet the other processes, whose number and addresses stand in the environment.

    Args:
        device_type: ``cuda`` or ``cpu``; of the GPUs, each process on a machine takes its own.
    """
    import torch
    import torch.distributed as dist

    from elder.progress import console

    backend = "gloo"
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=FOR_EVER)
    _here.rank, _here.count = dist.get_rank(), dist.get_world_size()
    console.quiet = not is_first()


@contextmanager
def alone() -> Iterator[None]:
    """Behave as one process, for work that this one does while the others wait."""
    before = _here.rank, _here.count
    _here.rank, _here.count = 0, 1
    try:
        yield
    finally:
        _here.rank, _here.count = before


def gather(value: T) -> list[T]:
    """Return what each process gives, in their order, on all of them."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def told(value: T) -> T:
    """Return on all processes what the first one gives."""
    if count() == 1:
        return value
    import torch.distributed as dist

    holder: list[Any] = [value if is_first() else None]
    dist.broadcast_object_list(holder)
    return holder[0]


def by_first(work: Callable[[], R]) -> R:
    """Let the first process do work alone, and return on all what came of it."""
    if count() == 1:
        return work()
    result: Any = None
    if is_first():
        with alone():
            result = work()
    return told(result)


def in_turn(work: Callable[[], R]) -> R:
    """Do the same work in one process after the other, for what needs more memory than all have at once."""
    results: list[R] = []
    for turn in range(count()):
        if turn == rank():
            results.append(work())
        gather(None)
    return results[0]


def share(items: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """Do the same work on all items, shared out among the processes.

    Args:
        items: the same on all processes.
        work: must run a divided model equally often for each; returns what can be sent, such as tensors on the CPU.

    Returns:
        All results, in the order of the items, on all processes: what is summed up from them does not depend on how
        many there are.
    """
    every = list(items)
    if count() == 1:
        return [work(item) for item in every]
    mine = []
    for start in range(0, len(every), count()):
        # who finds no item left does the last one, too, to stay in step
        mine.append(work(every[min(start + rank(), len(every) - 1)]))
    theirs = gather(mine)
    return [theirs[n % count()][n // count()] for n in range(len(every))]


def total(value: float) -> float:
    """Return the sum of what each process gives."""
    return sum(gather(value))
