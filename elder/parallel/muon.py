"""Muon on a divided model: each process makes the updates of some matrices orthogonal, which takes them whole."""

import torch
from torch import Tensor
from torch.optim import Muon

from elder.parallel.ranks import count, rank
from elder.parallel.shard import part_like, whole


class DividedMuon(Muon):
    """Muon whose matrices are divided among processes; its momentum is, too, and is called as in torch's.

    As many matrices as there are processes are put together at once, one for each of them to work on.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights that have gradients."""
        moved = [
            (group, weight)
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        for start in range(0, len(moved), count()):
            some = moved[start : start + count()]
            changes = [whole(self._momentum(*one)).float() for one in some]
            if rank() < len(some):
                changes[rank()] = _change(changes[rank()], some[rank()][0])
            for number, (group, weight) in enumerate(some):
                torch.distributed.broadcast(changes[number], src=number)
                change = changes[number].to(weight.dtype)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(part_like(change, weight))

    def _momentum(self, group: dict, weight: Tensor) -> Tensor:
        """Take a gradient into the momentum; returns what is to be made orthogonal."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer, share = state["momentum_buffer"], group["momentum"]
        buffer.lerp_(gradient, 1 - share)
        return gradient.lerp(buffer, share)


def _change(update: Tensor, group: dict) -> Tensor:
    """Return what torch's Muon adds to a whole matrix, by letting it move one of zeros by this update alone."""
    matrix = torch.nn.Parameter(torch.zeros_like(update))
    matrix.grad = update
    keys = ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    chosen = {key: group[key] for key in keys}
    Muon([matrix], momentum=0.0, nesterov=False, weight_decay=0.0, **chosen).step()
    return matrix.detach()
