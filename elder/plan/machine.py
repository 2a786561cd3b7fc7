"""Where a compression is to run: its memory, and how fast it computes by a small measurement or as it is stated."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from elder.device import peak_memory_bytes
from elder.plan.estimate import Estimate, Room

SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied
COPIED = 2**26  # bytes
TRIALS = 3
USABLE = 0.92  # of a GPU: its libraries and the gaps between tensors take the rest
# what a CPU's memory holds, over the tensors that are planned: 1.3 on SmolLM2, 1.6 on Gemma 3 270M (docs/training.md)
GAPS = 1.5
REACHED = 0.5  # of a large product's speed, by a model's passes: an assumption


@dataclass(frozen=True)
class Machine:
    """Where a compression is to run.

    Attributes:
        name: of the device.
        on_cpu: the processor computes, in the machine's own memory.
        memory: bytes of the device.
        process: bytes that Python and its libraries take of the machine's memory.
        flops: floating-point operations that a model's passes do in a second.
        moved: bytes that are read or written in a second.
        host: bytes of the machine's own memory.
        brought: bytes that come to the device in a second from where layers lie; what no memory keeps comes slower.
    """

    name: str
    on_cpu: bool
    memory: int
    process: int
    flops: float
    moved: float
    host: int
    brought: float

    @property
    def gpu(self) -> int | None:
        """Return the bytes of the GPU's memory; None where the processor computes."""
        return None if self.on_cpu else self.memory

    @property
    def limit(self) -> int | None:
        """Return the bytes that one process can take where nobody said how many; None for a CPU, which can swap."""
        return None if self.on_cpu else int(USABLE * self.memory)

    def seconds(self, stage: Estimate) -> float:
        """Return the time that a stage takes."""
        reading = stage.moved / self.moved + stage.brought / self.brought
        return stage.flops / self.flops + reading

    def room(self, most: int | None) -> Room:
        """Return what there is where at most ``most`` bytes of the device are to be taken; None: no limit."""
        left: float | None = most
        if most is not None and self.on_cpu:
            beside_python = most - self.process
            left = beside_python / GAPS
        return Room(left, self.host, self.on_cpu)


def machine_here(
    device: torch.device, dtype: torch.dtype, flops: float | None = None
) -> Machine:
    """Return this machine with one of its devices, measured in some hundredths of a second.

    Args:
        device: that computes.
        dtype: that it computes in.
        flops: that are stated, in place of those that are measured.
    """
    on_cpu = device.type == "cpu"
    memory = host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = "cpu"
    if not on_cpu:
        told = torch.cuda.get_device_properties(device)
        name, memory = told.name, told.total_memory
    process = peak_memory_bytes(torch.device("cpu"))  # before there are models
    here = Machine(
        name,
        on_cpu,
        memory,
        process,
        flops or 1.0,
        2 * _copies(device, device),  # read, and written
        host,
        _copies(torch.device("cpu"), device),
    )
    if flops is not None:
        return here
    return replace(
        here,
        flops=REACHED * _products(device, dtype),
    )


def _products(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations that a product of large matrices does in a second."""
    side = SIDE[device.type]
    one = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / _shortest(lambda: one @ one, device)


def _copies(start: torch.device, device: torch.device) -> float:
    """Return the bytes of a large copy that come from one device to another in a second."""
    source = torch.ones(
        COPIED,
        dtype=torch.uint8,
        device=start,
    )
    target = torch.empty_like(source, device=device)
    return COPIED / _shortest(lambda: target.copy_(source), device)


def _shortest(run: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of a few, the first one being left out."""
    times = []
    for _ in range(1 + TRIALS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
