"""The device that a name means, where a model is, and how much memory was taken there."""

import resource
from typing import Any

import torch

from elder.errors import UserError


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
    """Return the device that token ids must be on."""
    return next(model.parameters()).device


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
