"""How many blocks go through a model at once: halved where memory does not suffice, while batch and result stay."""

import gc
import os
from collections.abc import Callable
from typing import TypeVar

import torch

from elder.device import is_out_of_memory, out_of_memory
from elder.parallel.ranks import count
from elder.params import Training
from elder.process import trim_memory
from elder.progress import say

# in the environment of a stage that was killed, as the system does where memory runs out: how often all is halved
SMALLER = "ELDER_SMALLER"
MOST_TOKENS = (
    4096  # at once where nothing is learnt: more are no faster, and take memory
)
MOST_LEARNT = 2048  # tokens at once where a CPU learns: more take memory
T = TypeVar("T")


class MicroBatch:
    """The blocks that go through a model at once, of one kind of work.

    Attributes:
        work: what is done, for messages.
        size: blocks at once.
    """

    def __init__(self, work: str, size: int) -> None:
        self.work = work
        self.size = max(1, size >> int(os.environ.get(SMALLER, "0")))

    @classmethod
    def of_blocks(cls, work: str, size: int, seq_len: int) -> "MicroBatch":
        """Return one for work that learns nothing, on blocks of a length: fewer of long ones."""
        return cls(work, min(size, max(1, MOST_TOKENS // seq_len)))

    def attempt(self, run: Callable[[int], T]) -> T:
        """Return what ``run`` makes with ``size`` blocks at once; out of memory, it runs anew with half as many.

        What did not fit once is not tried again.

        Raises:
            UserError: if not even one block fits; on one of several processes, if ``size`` blocks do not.
        """
        while True:
            try:
                return run(self.size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # several processes must stay in step
                if self.size == 1 or count() > 1:
                    raise out_of_memory(
                        error, f"{self.work}, {_blocks(self.size)},"
                    ) from None
                self._halve(error)
            # not before the error is gone, which holds what was computed
            free_memory()

    def _halve(self, error: Exception) -> None:
        before, self.size = self.size, self.size // 2
        reason = str(
            out_of_memory(error, f"{self.work} with {before} blocks at once")
        ).partition(";")[0]
        say(f"{reason}: it goes on with {self.size} at once, and the same batch")


def blocks_to_learn(settings: Training, seq_len: int, on_cpu: bool) -> int:
    """Return how many blocks of a length a training begins with at once: the batch, on a CPU fewer of long ones."""
    whole = settings.micro_batch or settings.batch
    if settings.micro_batch is None and on_cpu:
        return min(whole, max(1, MOST_LEARNT // seq_len))
    return whole


def _blocks(size: int) -> str:
    return "one block at a time" if size == 1 else f"{size} blocks at once"


def free_memory() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    trim_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
