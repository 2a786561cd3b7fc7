"""What is planned: a model's shape, the parameters, and what follows from both without any model being run."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from elder.compression.layers import layers_to_remove
from elder.model.layers import find_layers
from elder.model.load import DTYPES, block_length, parameter_count
from elder.model.removal import outline
from elder.params import Params
from elder.params.catalogue import COMPENSATIONS, NONE
from elder.plan.simulate import Shape


@dataclass(frozen=True)
class Case:
    """A compression that is planned.

    Attributes:
        settings: all parameters.
        config: the model's configuration.
        gpu: bytes of the memory of the GPU that computes; None: a processor does.
    """

    settings: Params
    config: Any
    gpu: int | None = None

    def but(self, **changes: Any) -> "Case":
        """Return the case with other values of some attributes, of the same model."""
        found = replace(self, **changes)
        vars(found)["dense"] = self.dense  # which takes a while to build
        return found

    @property
    def on_cpu(self) -> bool:
        """Say whether a processor computes."""
        return self.gpu is None

    @cached_property
    def dense(self) -> nn.Module:
        """Return the dense model, without memory for its weights."""
        return outline(self.config, self.settings.model.trust_remote_code)

    @cached_property
    def shape(self) -> Shape:
        """Return the shape that blocks of calibration text give the model."""
        seq_len = block_length(self.settings.calibration.seq_len, self.dense)
        trusted = self.settings.model.trust_remote_code
        return Shape(self.config, seq_len, trusted, self.on_cpu)

    @cached_property
    def layers(self) -> int:
        """Return the number of layers of the dense model."""
        return len(find_layers(self.dense))

    @cached_property
    def gone(self) -> int:
        """Return how many of them go."""
        return layers_to_remove(self.settings.select, self.layers)

    @property
    def left(self) -> int:
        """Return how many stay."""
        return self.layers - self.gone

    @property
    def keeps_states(self) -> bool:
        """Say whether the recovery keeps what the dense model makes of each block, as `elder.compression.stages`."""
        settings = self.settings
        return settings.recover.keeps_states and settings.launch.processes == 1

    @property
    def samples(self) -> int:
        """Return the number of calibration blocks."""
        return self.settings.calibration.samples

    @cached_property
    def parameters(self) -> int:
        """Return the parameters of the dense model."""
        return parameter_count(self.dense)

    @cached_property
    def parameters_left(self) -> int:
        """Return the parameters of the shallower model, a mean layer going for each that goes."""
        a_layer = parameter_count(find_layers(self.dense)) / self.layers
        return round(self.parameters - self.gone * a_layer)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype that the dense model is loaded in."""
        named = self.settings.model.dtype
        said = getattr(self.config, "dtype", None) or self.shape.text.dtype
        if isinstance(said, str):
            said = DTYPES.get(said)
        return DTYPES.get(named) or said or torch.float32

    @property
    def compute(self) -> torch.dtype:
        """Return the dtype that training computes in, as `elder.compression.stages` has it."""
        return torch.float32 if self.dtype == torch.float32 else torch.bfloat16

    @property
    def layers_bytes(self) -> int:
        """Return the bytes of the weights of all layers of the dense model."""
        return parameter_count(find_layers(self.dense)) * self.dtype.itemsize

    @property
    def largest_layer_bytes(self) -> int:
        """Return the bytes of the weights of the largest of its layers."""
        counts = [parameter_count(layer) for layer in find_layers(self.dense)]
        return max(counts) * self.dtype.itemsize

    @property
    def own_layers_bytes(self) -> int:
        """Return the most bytes of the layers that a compensation changes, which no longer are the dense model's."""
        method = self.settings.compensation
        if method == NONE:
            return 0
        if COMPENSATIONS.find(method).everywhere:
            return self.parameters_left * self.dtype.itemsize
        return min(self.gone, self.left) * self.largest_layer_bytes

    @property
    def dense_bytes(self) -> int:
        """Return the bytes of the dense model's weights."""
        return self.parameters * self.dtype.itemsize
