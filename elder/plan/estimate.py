"""What one stage takes, as it is worked out, and the entry of a plan that it becomes."""

from dataclasses import dataclass

from elder.plan.live import WEIGHTS, Parts
from elder.plan.result import StagePlan
from elder.plan.simulate import Need, total

# in the machine's memory, whatever the device
LYING, STATES = "weights on the CPU", "hidden states on the CPU"
ON_HOST = (LYING, STATES)


@dataclass(frozen=True)
class Estimate:
    """What one stage takes.

    Attributes:
        name: of the stage.
        mode: how it does its work.
        peaks: bytes by kind, for each kind of work that the stage does; those of one count at once.
        batch: blocks in a batch; None where none go through the model.
        micro_batch: blocks that go through it at once.
        flops: floating-point operations.
        moved: bytes that go between processor and memory where that takes the time.
        brought: bytes of layers that come to the device each time that they run.
        computes: whether it does more than read and write.
    """

    name: str
    mode: str
    peaks: tuple[Parts, ...]
    batch: int | None = None
    micro_batch: int | None = None
    flops: float = 0.0
    moved: float = 0.0
    brought: float = 0.0
    computes: bool = True

    def parts(self, on_cpu: bool) -> Parts:
        """Return the bytes by kind at the moment at which most lives on the device."""
        here = [_here(parts, on_cpu) for parts in self.peaks]
        return max(here, key=total)

    def memory(self, on_cpu: bool) -> float:
        """Return the bytes at that moment."""
        return total(self.parts(on_cpu))

    @property
    def beside(self) -> float:
        """Return the bytes that lie in the machine's memory beside a GPU."""
        return max(
            sum(parts.get(kind, 0.0) for kind in ON_HOST) for parts in self.peaks
        )

    def entry(self, on_cpu: bool, seconds: float) -> StagePlan:
        """Return the entry of a plan."""
        parts = {kind: round(count) for kind, count in self.parts(on_cpu).items()}
        return StagePlan(
            name=self.name,
            mode=self.mode,
            memory_bytes=sum(parts.values()),
            host_bytes=0 if on_cpu else round(self.beside),
            parts=parts,
            micro_batch=self.micro_batch,
            batch=self.batch,
            seconds=round(seconds, 1) if self.computes else None,
        )


@dataclass(frozen=True)
class Room:
    """What a stage may take.

    Attributes:
        device: bytes that tensors may take there; None: no limit is set.
        host: bytes of the machine's own memory.
        on_cpu: the processor computes, in the machine's own memory.
    """

    device: float | None
    host: float
    on_cpu: bool

    def holds(self, stage: Estimate) -> bool:
        """Say whether a stage fits."""
        if self.device is None:
            return True
        # what only reads and writes maps files
        counts = stage.computes and not self.on_cpu
        fits_beside = not counts or stage.beside <= self.host
        return stage.memory(self.on_cpu) <= self.device and fits_beside


def _here(parts: Parts, on_cpu: bool) -> Parts:
    """Return what of the bytes lies on the device."""
    return {
        kind: count for kind, count in parts.items() if on_cpu or kind not in ON_HOST
    }


def beside(weights: float, *needs: Need) -> tuple[Parts, ...]:
    """Return the peaks of kinds of work, with the weights that they find."""
    found = []
    for need in needs:
        peak = need.peak
        found.append(
            {WEIGHTS: peak.get(WEIGHTS, 0.0) + weights}
            | {k: v for k, v in peak.items() if k != WEIGHTS}
        )
    return tuple(found)
