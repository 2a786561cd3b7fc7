"""A model divided among processes by FSDP2: each keeps a part of every weight, and has a layer's whole while it runs.

The units are the decoder layers, and the model with all that is in no layer. What enters the head goes through the
model's own call, too (`elder.model.head`), so that FSDP sees it.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from elder.parallel.ranks import count, gather, is_first, rank


@cache
def mesh(device_type: str) -> Any:
    """Return all processes, as DTensors know them."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (count(),))


def divide(model: nn.Module, layers: Iterable[nn.Module], device_type: str) -> None:
    """Divide a model's weights among all processes, in place, and move each part to its device.

    Gradients are summed over processes, whose losses are shares of the batch's.

    Args:
        model: whole, on the CPU, the same in all processes.
        layers: its decoder layers.
        device_type: ``cuda`` or ``cpu``.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for unit in (*layers, model):
        fully_shard(unit, mesh=mesh(device_type))
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def take_apart(model: nn.Module) -> None:
    """Leave each process its part alone of what a forward pass put together, and no backward pass took apart."""
    if count() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def is_divided(tensor: Tensor) -> bool:
    """Say whether this process has a part of a tensor alone."""
    return count() > 1 and hasattr(tensor, "full_tensor")


def own_part(tensor: Any) -> Tensor:
    """Return what this process has of a tensor, which shares its memory."""
    return tensor.to_local() if is_divided(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """Return a tensor put together from all parts, on all processes; they call it together."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def part_like(value: Tensor, pattern: Tensor) -> Tensor:
    """Return a whole tensor divided as another one is, unless it is so already; nothing is sent."""
    if not is_divided(pattern) or is_divided(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(pattern, DTensor)
    value = value.to(pattern.device)
    return distribute_tensor(
        value, pattern.device_mesh, pattern.placements, src_data_rank=None
    )


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return {name: whole weight, on the CPU} on the first process, and nothing on the others.

    Weights that are one under several names stay one.
    """
    take_apart(model)
    known: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) not in known:
            value = whole(weight.detach())
            known[id(weight)] = value.cpu() if is_first() else value.new_empty(0)
        if is_first():
            state[name] = known[id(weight)]
    return state


def shares(ids: Tensor, at_once: int) -> Iterator[tuple[Tensor, float]]:
    """Yield this process's pieces of a batch, (n, ...) each, and what share of the batch each is.

    All processes have equally many pieces, so that they stay in step: where one has fewer, the batch's first row comes
    once more and counts nothing.

    Args:
        ids: the batch, (rows, ...).
        at_once: rows of a piece at most.
    """
    mine = ids.tensor_split(count())[rank()]
    pieces = mine.split(at_once) if len(mine) else ()
    for piece in pieces:
        yield piece, len(piece) / len(ids)
    longest = -(-len(ids) // count())
    for _ in range(len(pieces), -(-longest // at_once)):
        yield ids[:1], 0.0


def sum_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Add up over processes the gradients of weights that all have whole, such as adapters; FSDP does the others'."""
    if count() == 1:
        return
    import torch.distributed as dist

    for weight in weights:
        if weight.grad is not None and not is_divided(weight):
            dist.all_reduce(weight.grad)


def summed(tensor: Tensor) -> Tensor:
    """Return the sum of a small tensor over processes, added in their order."""
    if count() == 1:
        return tensor
    return torch.stack(gather(tensor.cpu())).sum(dim=0).to(tensor.device)


def merge_adapters(adapted: Any) -> None:
    """Add LoRA adapters to the weights of a divided model, and take them out: as peft does it with whole ones."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer: Any
    with torch.no_grad():
        layers = [one for one in adapted.modules() if isinstance(one, BaseTunerLayer)]
        for layer in layers:
            weight = layer.get_base_layer().weight
            for name in layer.active_adapters:
                delta = layer.get_delta_weight(name)
                weight.add_(part_like(delta.to(weight.dtype), weight))
    adapted.unload()
