"""The optimiser of all training of model weights: AdamW for everything, or Muon for the matrices inside the layers.

Muon (Jordan et al. 2024; "Muon is Scalable for LLM Training", arXiv 2502.16982) makes each update of a matrix
orthogonal, so that all its directions move alike: more is learnt from each of few steps. Embeddings, heads, norms,
biases and adapters stay with AdamW.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from elder.model.layers import find_layers

SMALLEST_SIZE = 1e-3  # of a weight that starts at 0, such as a bias
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
        groups: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for parameter in (p for p in model.parameters() if p.requires_grad):
            peak = lr * (max(root_mean_square(parameter), SMALLEST_SIZE) if relative else 1.0)
            is_matrix = parameter in matrices
            peak = peak / MUON_SHARE if is_matrix and relative else peak
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups[is_matrix].append(
                {"params": [parameter], "lr": peak, "peak": peak, "weight_decay": decay}
            )
        self.parts: list[torch.optim.Optimizer] = []
        if groups[False]:
            self.parts.append(torch.optim.AdamW(groups[False], betas=(0.9, 0.95)))
        if groups[True]:
            self.parts.append(torch.optim.Muon(groups[True], adjust_lr_fn="match_rms_adamw"))

    def step(self, factor: float) -> None:
        """Move the weights at ``factor`` times the peak learning rate, and forget the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = factor * group["peak"]
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all state as flat tensors, PART.PARAMETER.NAME."""
        return {
            f"{number}.{index}.{name}": torch.as_tensor(value)
            for number, part in enumerate(self.parts)
            for index, values in part.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load_state(self, names: list[str], read: Callable[[str], torch.Tensor]) -> None:
        """Take up the state that ``state`` returned, read tensor by tensor."""
        states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in self.parts]
        for key in names:
            number, index, name = key.split(".")
            states[int(number)].setdefault(int(index), {})[name] = read(key)
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(
                {"state": state, "param_groups": part.state_dict()["param_groups"]}
            )


def layer_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Return the two-dimensional weights inside the decoder layers."""
    return {
        p
        for layer in find_layers(model)
        for p in layer.parameters()
        if p.ndim == 2 and min(p.shape) > 1
    }


def root_mean_square(weight: torch.Tensor) -> float:
    """Return the root mean square of a tensor."""
    return weight.detach().float().square().mean().sqrt().item()
