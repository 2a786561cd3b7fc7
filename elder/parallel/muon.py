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
            self._move_some(moved[start : start + count()])

    def _move_some(self, some: list[tuple[dict, Tensor]]) -> None:
        """Move as many weights as there are processes, or fewer."""
        changes = []
        for group, weight in some:
            update = self._momentum(group, weight)
            changes.append(whole(update).float())
        own = rank()
        if own < len(some):
            group, _ = some[own]
            changes[own] = _change(changes[own], group)
        for number, (group, weight) in enumerate(some):
            change = changes[number]
            torch.distributed.broadcast(change, src=number)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            part = part_like(change.to(weight.dtype), weight)
            weight.add_(part)

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
