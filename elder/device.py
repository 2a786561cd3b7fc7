"""The device that a name means, where a model is, and how much memory was taken there."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from elder.errors import NEED_LESS, UserError

# How torch, the system and the GPU's libraries say that memory does not suffice; on a CPU torch has no type for it.
OUT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
TRIED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


# where a plan runs code on fake tensors, which lie on a CPU: whether it is one that will compute
_planned: ContextVar[bool | None] = ContextVar("planned", default=None)


def computes_on_cpu(device: torch.device) -> bool:
    """Say whether what lies on a device is computed as a CPU computes it; a plan says so for its tensors."""
    planned = _planned.get()
    return device.type == "cpu" if planned is None else planned


@contextmanager
def planned(on_cpu: bool) -> Iterator[None]:
    """Let code that runs on fake tensors do as on a CPU, or as on a GPU."""
    before = _planned.set(on_cpu)
    try:
        yield
    finally:
        _planned.reset(before)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory did not suffice, on whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return OUT_OF_MEMORY.search(str(error)) is not None


def out_of_memory(error: BaseException, what: str = "the work") -> UserError:
    """Return the sentence for such an error: what did not fit, how much was asked for, and what to do."""
    tried = TRIED.search(str(error))
    asked = f" ({tried[1]} more were asked for)" if tried else ""
    return UserError(f"{what} does not fit into memory{asked}; {NEED_LESS}")


def device_of(name: str) -> torch.device:
    """Return the device that a name means; ``auto`` is the first GPU, or else the CPU.

    Raises:
        UserError: for an unknown device, or one this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(
            f"device {name!r} is not available here; give auto, cpu, cuda or cuda:N"
        ) from None
    return device


def device_of_model(model: Any) -> torch.device:
    """Return the device that token ids must be on; weights that lie elsewhere are on none until they are run."""
    devices = [weight.device for weight in model.parameters()]
    return next((one for one in devices if one.type != "meta"), devices[0])


def memory_of(device: torch.device) -> int | None:
    """Return the bytes of a GPU's own memory; None for a device that has the machine's."""
    if device.type != "cuda":
        return None
    return torch.cuda.get_device_properties(device).total_memory


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
