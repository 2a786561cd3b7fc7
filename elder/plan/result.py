"""What a plan says: one frozen record, as ``elder plan --json`` prints it, and its lines for people."""

from elder.record import Json, Number, Plain

GB = 10**9


class StagePlan(Plain):
    """What one stage takes.

    Attributes:
        name: of the stage.
        mode: how it does its work.
        memory_bytes: that tensors take at the moment at which most live, on the device.
        host_bytes: of copies and weights that are kept beside a GPU, in the machine's memory.
        parts: {kind: bytes} of that moment.
        micro_batch: blocks that go through the model at once; None where none do.
        batch: blocks in a batch.
        seconds: that it computes; None where it only reads and writes.
    """

    name: str
    mode: str
    memory_bytes: int
    host_bytes: int
    parts: dict[str, int]
    micro_batch: int | None
    batch: int | None
    seconds: Number | None

    def line(self) -> str:
        """Say it for people."""
        shares = sorted(
            self.parts.items(),
            key=lambda part: -part[1],
        )
        most = [
            f"{kind} {size(bytes_)}"
            for kind, bytes_ in shares
            if bytes_ > 0.02 * self.memory_bytes
        ]
        at_once = (
            "-" if self.micro_batch is None else f"{self.micro_batch} of {self.batch}"
        )
        time = "-" if self.seconds is None else duration(self.seconds)
        told = f"{self.name:<11}{size(self.memory_bytes):>9}{at_once:>12}{time:>10}   {self.mode}"
        return f"{told}: {', '.join(most)}"


class PlanResult(Plain):
    """What a compression takes.

    Attributes:
        model: its name as the user gave it.
        num_layers: of the dense model.
        removed: how many of them go.
        parameters: of the dense model.
        dtype: of the dense model.
        samples: calibration blocks.
        seq_len: tokens in one.
        device: where it is to run.
        device_bytes: memory there.
        process_bytes: what Python and its libraries take beside, in the machine's memory.
        max_memory: bytes that may be taken; None: no limit was set.
        flops_per_second: that the times go by.
        settings: {parameter: value} that the limit asks for.
        stages: of the compression, in order; those that do nothing are left out.
    """

    model: str
    num_layers: int
    removed: int
    parameters: int
    dtype: str
    samples: int
    seq_len: int
    device: str
    device_bytes: int
    process_bytes: int
    max_memory: int | None
    flops_per_second: Number
    settings: dict[str, Json]
    stages: list[StagePlan]

    @property
    def largest(self) -> StagePlan:
        """Return the stage that takes the most memory."""
        return max(
            self.stages,
            key=lambda stage: stage.memory_bytes,
        )

    @property
    def seconds(self) -> float:
        """Return the seconds of all stages."""
        return sum(stage.seconds or 0 for stage in self.stages)

    def lines(self) -> list[str]:
        """Say it for people."""
        name = f"{self.model}: {self.parameters / 1e6:,.0f} million parameters in {self.dtype}"
        lines = [
            f"{name}; {self.removed} of {self.num_layers} layers go; {self.samples} blocks of {self.seq_len} tokens",
            f"{'stage':<11}{'memory':>9}{'at once':>12}{'time':>10}   how, and what takes it",
            *(stage.line() for stage in self.stages),
            f"on {self.device}, {size(self.device_bytes)}, at {self.flops_per_second / 1e12:.3g} TFLOP/s; Python and"
            f" its libraries take {size(self.process_bytes)} more of the machine's memory",
        ]
        if self.max_memory is not None:
            lines.append(f"within {size(self.max_memory)}: {self._chosen()}")
        return lines

    def short(self) -> str:
        """Say in one line what takes most."""
        most = self.largest
        told = f"plan: {most.name} takes most memory, {size(most.memory_bytes)} of {size(self.device_bytes)}"
        told += f" ({most.mode}); about {duration(self.seconds)} on {self.device}"
        if self.max_memory is None:
            return told
        return f"{told}; within {size(self.max_memory)}: {self._chosen()}"

    def _chosen(self) -> str:
        chosen = [f"{name}={value}" for name, value in self.settings.items()]
        return ", ".join(chosen) or "all of it fits as it is set"


def size(count: float) -> str:
    """Write a number of bytes."""
    if count < GB / 10:
        return f"{count / 1e6:.0f} MB"
    return f"{count / GB:,.1f} GB" if count < 100 * GB else f"{count / GB:,.0f} GB"


def duration(seconds: float) -> str:
    """Write a time."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h"
