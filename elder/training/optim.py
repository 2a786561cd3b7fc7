"""The optimiser of all training of model weights: AdamW for everything, or Muon for the matrices inside the layers.

Muon (Jordan et al. 2024; "Muon is Scalable for LLM Training", arXiv 2502.16982) makes each update of a matrix
orthogonal, so that all its directions move alike: more is learnt from each of few steps. Embeddings, heads, norms,
biases and adapters stay with AdamW.

Muon harms models that were trained with Adam ("Can Muon Fine-tune Adam-Pretrained Models?", arXiv 2605.10468), as
nearly all were. It leaves matrices whose singular values are even, Adam leaves a few large ones: `evenness` tells.
"""

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from elder.device import computes_on_cpu, device_of_model
from elder.model.layers import find_layers
from elder.parallel.muon import DividedMuon
from elder.parallel.ranks import count
from elder.parallel.shard import part_like, whole

Group = dict[
    str, float | list[nn.Parameter]
]  # torch's parameter group: ``params`` and their rates
SMALLEST_SIZE = 1e-3  # of a weight that starts at 0, such as a bias
BETAS = (0.9, 0.95)  # of AdamW
OPTIMIZERS: tuple[str, ...] = ("adamw", "muon")
# at least, of a model that Muon trained: the bundled ones have 0.81, 0.83 and 0.93, SmolLM2-135M, Adam's, has 0.35
EVEN = 0.5
POWER_ITERATIONS = 12
MUON_SHARE = 0.2  # root mean square of an update of torch's Muon that matches AdamW, over its learning rate


class Optimizer:
    """AdamW and, where asked for, Muon, as one.

    Args:
        model: its trainable weights are moved.
        kind: ``adamw`` or ``muon``.
        lr: peak learning rate.
        relative: ``lr`` is a share of each weight tensor's root mean square, so that it holds for every width.
        weight_decay: decoupled; norms and biases are not decayed.
    """

    def __init__(
        self, model: Any, kind: str, lr: float, relative: bool, weight_decay: float
    ) -> None:
        matrices = layer_matrices(model) if kind == "muon" else set()
        adamw: list[Group] = []
        muon: list[Group] = []
        for weight in model.parameters():
            if not weight.requires_grad:
                continue
            is_matrix = weight in matrices
            peak = lr
            if relative:
                peak = peak_rate(weight, lr, is_matrix)
            decay = 0.0
            if weight.ndim > 1:
                decay = weight_decay
            group: Group = {
                "params": [weight],
                "lr": peak,
                "peak": peak,
                "weight_decay": decay,
            }
            if is_matrix:
                muon.append(group)
            else:
                adamw.append(group)
        self.parts: list[torch.optim.Optimizer] = []
        if adamw:
            # on a CPU torch's own choice, whose rounding the records of older versions have
            on_cpu = computes_on_cpu(device_of_model(model))
            part = torch.optim.AdamW(adamw, betas=BETAS, fused=not on_cpu or None)
            if on_cpu:
                make_moments(part)
            self.parts.append(part)
        if muon:
            kind_of_muon = DividedMuon if count() > 1 else torch.optim.Muon
            self.parts.append(kind_of_muon(muon, adjust_lr_fn="match_rms_adamw"))

    def step(self, factor: float) -> None:
        """Move the weights at ``factor`` times the peak learning rate, and forget the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = factor * group["peak"]
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return all state as flat tensors, PART.PARAMETER.NAME."""
        tensors = {}
        for number, part in enumerate(self.parts):
            state = part.state_dict()["state"]
            for index, values in state.items():
                for name, value in values.items():
                    tensors[f"{number}.{index}.{name}"] = torch.as_tensor(value)
        return tensors

    def _weight(self, key: str) -> nn.Parameter:
        """Return the weight that a tensor of the state belongs to."""
        number, index, _ = key.split(".")
        weight: nn.Parameter = self.parts[int(number)].param_groups[int(index)][
            "params"
        ][0]
        return weight

    def room_for(self, key: str, shape: list[int]) -> Tensor:
        """Return a tensor of zeros to read one of the state into, divided as its weight is where it has its shape."""
        weight = self._weight(key)
        if shape == list(weight.shape):
            return torch.zeros_like(weight)
        return torch.zeros(shape)

    def load_state(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        """Take up the state that ``state`` returned, read tensor by tensor."""
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.parts]
        for key in names:
            number, index, name = key.split(".")
            of_weight = states[int(number)].setdefault(int(index), {})
            weight, value = self._weight(key), read(key)
            if value.shape == weight.shape:
                value = part_like(value, weight)
            of_weight[name] = value
        for part, state in zip(self.parts, states, strict=True):
            groups = part.state_dict()["param_groups"]
            part.load_state_dict({"state": state, "param_groups": groups})


def make_moments(part: torch.optim.AdamW) -> None:
    """Make the state of AdamW that by itself it makes in its first step.

    Made before all that comes and goes with each step, the moments do not lie in between: memory for one large tensor
    more would be taken for each hole that is too small.
    """
    state = {}
    weights = [one for group in part.param_groups for one in group["params"]]
    for index, weight in enumerate(weights):
        state[index] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    part.load_state_dict(part.state_dict() | {"state": state})


def peak_rate(weight: Tensor, share: float, is_matrix: bool) -> float:
    """Return the peak learning rate that moves a weight by a share of its root mean square.

    Args:
        weight: as it is before training.
        share: of its root mean square.
        is_matrix: Muon moves it.
    """
    size = max(root_mean_square(weight), SMALLEST_SIZE)
    peak = share * size
    return peak / MUON_SHARE if is_matrix else peak


def layer_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Return the two-dimensional weights inside the decoder layers."""
    matrices = set()
    for layer in find_layers(model):
        for weight in layer.parameters():
            if weight.ndim == 2 and min(weight.shape) > 1:
                matrices.add(weight)
    return matrices


def optimizers_for(model: nn.Module) -> tuple[str, ...]:
    """Return the optimisers that may suit a model, AdamW first: Muon only where what trained it was like Muon."""
    return OPTIMIZERS if evenness(model) >= EVEN else OPTIMIZERS[:1]


def evenness(model: nn.Module) -> float:
    """Return how even the singular values of the matrices inside the layers are; 1: as those of random matrices.

    It is the median, over the matrices, of the stable rank ||W||_F^2 / ||W||_2^2 as a share of the one that a matrix of
    independent normal numbers has, m n / (sqrt(m) + sqrt(n))^2 in the limit of large m and n. 0.0: there are none.
    """
    found, matrices = [], layer_matrices(model)
    for weight in model.parameters():  # in one order on all processes
        if weight not in matrices:
            continue
        matrix = whole(weight.detach()).float()
        rows, columns = matrix.shape
        largest = spectral_norm(matrix)
        if largest:
            stable_rank = matrix.square().sum().item() / largest**2
            found.append(stable_rank * (rows**-0.5 + columns**-0.5) ** 2)
    return median(found) if found else 0.0


def spectral_norm(matrix: Tensor) -> float:
    """Return the largest singular value, or a little less, by power iteration from a fixed start."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(matrix.shape[1], generator=generator).to(matrix.device)
    for _ in range(POWER_ITERATIONS):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
    return (matrix @ vector).norm().item()


def root_mean_square(weight: Tensor) -> float:
    """Return the root mean square of a tensor."""
    values = whole(weight.detach()).float()
    mean = values.square().mean()
    return mean.sqrt().item()
