"""What work on a model takes, by running it on fake tensors: the code itself, with shapes and without memory.

A model of a few layers stands for one of many: what grows with the layers grows by the same for each. Memory is counted
in phases, since the moment at which most lives may be another one in a deeper model.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elder.device import planned
from elder.errors import UserError
from elder.model.removal import outline, shortened_fields
from elder.plan.live import Live, Parts

FEW = (2, 4)  # layers of the models that stand for deeper ones


class UnforeseenError(UserError):
    """A model whose code does not run without numbers."""


@dataclass(frozen=True)
class Need:
    """What work takes beside the weights that it finds.

    Attributes:
        phases: {phase: bytes by kind when most lives}.
        flops: floating-point operations.
    """

    phases: dict[str, Parts] = field(default_factory=dict)
    flops: float = 0.0

    @property
    def peak(self) -> Parts:
        """Return the bytes by kind at the moment at which most lives."""
        return max(self.phases.values(), key=total, default={})


def total(parts: Parts) -> float:
    """Return the bytes of all kinds."""
    return sum(parts.values())


@dataclass(frozen=True)
class Shape:
    """The shape of a model.

    Attributes:
        config: its configuration.
        seq_len: tokens in a block.
        trust_remote_code: whether code that comes with it may run.
        on_cpu: a processor is to run it.
    """

    config: Any
    seq_len: int
    trust_remote_code: bool = False
    on_cpu: bool = True

    @property
    def text(self) -> Any:
        """Return the configuration that counts the layers."""
        return self.config.get_text_config(decoder=True)

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return int(self.text.num_hidden_layers)

    def of_layers(self, count: int, dtype: torch.dtype) -> Any:
        """Return the configuration with ``count`` of the layers, from all over the model, and weights in ``dtype``."""
        kept = [place * self.layers // count for place in range(count)]
        config = copy.deepcopy(self.config)
        text = config.get_text_config(decoder=True)
        for name, value in shortened_fields(text, kept, self.layers).items():
            setattr(text, name, value)
        config.dtype = dtype
        return config


class Lab:
    """Where fake models are made, and what is done with them is counted.

    Args:
        shape: of the models.
        layers: how many they have.
    """

    def __init__(self, shape: Shape, layers: int) -> None:
        self.shape, self.layers = shape, layers
        self.live = Live(shape.text.vocab_size)

    def model(self, dtype: torch.dtype) -> Any:
        """Return a model, in eval mode and without gradients; its weights do not count."""
        config = self.shape.of_layers(self.layers, dtype)
        model = outline(
            config,
            self.shape.trust_remote_code,
            "cpu",
        )
        model.eval().requires_grad_(False)
        self.live.ignore(model)
        return model

    def blocks(self, count: int) -> Tensor:
        """Return blocks of token ids, (count, seq_len) int64."""
        return torch.zeros(
            count,
            self.shape.seq_len,
            dtype=torch.int64,
        )


Work = Callable[[Lab], None]


def simulate(shape: Shape, layers: int, work: Work) -> Need:
    """Return what work takes on models of ``layers`` layers.

    Raises:
        UnforeseenError: if the models' code does not run without numbers.
    """
    if layers <= FEW[-1]:
        return _run(shape, layers, work)
    small, large = (_run(shape, count, work) for count in FEW)
    steps = (layers - FEW[1]) / (FEW[1] - FEW[0])
    phases = {
        name: _further(
            small.phases.get(name, {}),
            parts,
            steps,
        )
        for name, parts in large.phases.items()
    }
    return Need(
        phases,
        large.flops + steps * (large.flops - small.flops),
    )


def _further(small: Parts, large: Parts, steps: float) -> Parts:
    """Go on in a straight line through what two models took, kind by kind."""
    parts = {}
    for kind in {**small, **large}:
        value = large.get(kind, 0.0)
        parts[kind] = max(
            0.0,
            value + steps * (value - small.get(kind, 0.0)),
        )
    return parts


def _run(shape: Shape, layers: int, work: Work) -> Need:
    from torch._subclasses.fake_tensor import FakeTensorMode

    # what draws at random draws nothing from those who come after
    with torch.random.fork_rng(devices=[]), FakeTensorMode(), planned(shape.on_cpu):
        lab = Lab(shape, layers)
        try:
            work(lab)
        except UserError:
            raise
        except Exception as error:  # each family complains in its own way
            reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            family = type(shape.config).__name__.removesuffix("Config")
            raise UnforeseenError(
                f"what a {family} takes cannot be foretold: {reason[:120]}"
            ) from None
    return Need(lab.live.peaks, lab.live.flops)
