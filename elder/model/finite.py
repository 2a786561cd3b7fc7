"""Numbers that are not finite, refused early with weight or layer, dtype and cure; and weights beside another model's.

A weight that is nan or infinite is seen once, when a model is loaded. A state can also leave the range of a dtype while
the model runs: float16 holds nothing above 65,504. Then the run is repeated, watched, to name the first layer at fault.

Codes of a number format that were taken for weights are finite, but of another magnitude: matrices of two models are
compared by their root mean square. What a removal leaves is some of what was there, so that it can never leave the
range of the dense model; training and compensation move it by small factors, a lost scale by thousands.
"""

import math
import re
from collections.abc import Iterator

import torch
from torch import nn

from elder.errors import UserError
from elder.model.head import by_position, logits_of_states, states_of
from elder.model.layers import LAYER_LISTS, LayerControl, find_layers
from elder.model.offload import with_values
from elder.record import Weights

LAYER = re.compile(rf"\b({'|'.join(LAYER_LISTS)})\.\d+\.")


class NotFiniteError(UserError):
    """A number came out nan or infinite that something should be decided or learnt by."""


def refuse_broken_weights(model: nn.Module, title: str) -> None:
    """Refuse a model with a weight that is nan or infinite, in the dtype that it has.

    Args:
        model: its parameters are read once.
        title: what the model is called in the sentence.

    Raises:
        NotFiniteError: naming the first such weight, and how many there are.
    """
    read = with_values(model, model.named_parameters())
    broken = {key: one.dtype for key, one in read if not all_finite(one)}
    if broken:
        first, dtype = next(iter(broken.items()))
        more = f", as {len(broken) - 1} more do" if len(broken) > 1 else ""
        raise NotFiniteError(
            f"weight {first} of {title} holds nan or infinite values in {_named(dtype)}{more}; "
            f"{_cure(dtype)}"
        )


def refuse_broken_states(
    model: nn.Module, blocks: torch.Tensor, batch: int = 1
) -> None:
    """Run a model over blocks, and refuse it where a state is nan or infinite.

    Args:
        model: in eval mode.
        blocks: (blocks, tokens) int64.
        batch: blocks that are run at once.

    Raises:
        NotFiniteError: naming the first layer that puts out such a state, or else the embedding or the logits.
    """
    for ids in blocks.split(batch):
        place = _first_broken(model, ids)
        if place is not None:
            dtype = next(model.parameters()).dtype
            raise NotFiniteError(
                f"{place} came out nan or infinite on this text in {_named(dtype)}; {_cure(dtype)}"
            )


def refuse_broken_losses(
    model: nn.Module, ids: torch.Tensor, losses: torch.Tensor
) -> None:
    """Refuse a model whose loss on some blocks, or what the loss is made of, is nan or infinite.

    Args:
        model: in eval mode.
        ids: the blocks, (blocks, tokens) int64.
        losses: of the blocks, or their logits, of any shape.

    Raises:
        NotFiniteError: naming the layer where it begins.
    """
    if not all_finite(losses):
        refuse_broken_states(model, ids, len(ids))
        refuse_not_finite(losses.sum().item(), "the loss on this text")


def refuse_not_finite(value: float, what: str) -> None:
    """Refuse a number that is nan or infinite.

    Raises:
        NotFiniteError: saying what it is.
    """
    if not math.isfinite(value):
        raise NotFiniteError(
            f"{what} is {value}: nothing can be decided by it; load the model with --dtype float32, or use another "
            "checkpoint"
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Say whether a tensor of floats holds neither nan nor infinity, with no copy of it."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    values = tensor.detach()
    if values.element_size() == 1:  # 8-bit floats have no such operation
        values = values.float()
    lowest, highest = values.aminmax()  # nan wins over every number
    return math.isfinite(lowest.item()) and math.isfinite(highest.item())


@torch.no_grad()
def _first_broken(model: nn.Module, ids: torch.Tensor) -> str | None:
    """Return the first place where a state of this batch is not finite; None where all are."""
    places: list[str] = []

    def observe(index: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        if not places and index == 0 and not all_finite(entering):
            places.append("what enters layer 0")
        if not places and not all_finite(leaving):
            places.append(f"the output of layer {index}")

    with LayerControl(find_layers(model)) as control:
        control.observe = observe
        states = states_of(model, ids)

    def fine(some: torch.Tensor) -> torch.Tensor:
        return logits_of_states(model, some).isfinite().all(dim=-1)

    if not places and not by_position(model, fine, states.flatten(0, 1)).all():
        places.append("the logits, after the last layer,")
    return places[0] if places else None


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cure(dtype: torch.dtype) -> str:
    if dtype in (torch.float16, torch.bfloat16):
        return "load it with --dtype float32, or use another checkpoint if that does not help"
    return "use another checkpoint"


def compare_weights(dense: nn.Module, pruned: nn.Module) -> Weights:
    """Compare the matrices of a shallower model with those of the dense one, all layers of a kind together.

    Args:
        dense: the model that layers were taken out of.
        pruned: what is left.

    Returns:
        Whether all weights of ``pruned`` are finite, and by which factor its matrices are larger than the largest of
        their kind in ``dense``, or smaller than the smallest: of the kind that is furthest out; None where it is
        infinite.
    """
    before, after = _sizes(dense), _sizes(pruned)
    every = [size for sizes in before.values() for size in sizes]
    factor, furthest = 1.0, None
    for kind, sizes in after.items():
        known = before.get(kind) or every
        largest = max(known) or max(every)
        apart = max(_over(max(sizes), largest), _over(min(known), max(sizes)))
        if furthest is None or not apart <= factor:
            factor, furthest = max(factor, apart), kind
    finite = all(all_finite(one) for one in pruned.state_dict().values())
    known_factor = factor if finite and factor < float("inf") else None
    return Weights(finite=finite, factor=known_factor, matrix=furthest)


def _over(above: float, below: float) -> float:
    """Return a ratio; 0 over 0 is 1, anything else over 0 infinite."""
    if below:
        return above / below
    return float("inf") if above else 1.0


def _sizes(model: nn.Module) -> dict[str, list[float]]:
    """Return {name of a matrix, its layer left out: root mean square in each layer}."""
    sizes: dict[str, list[float]] = {}
    for name, matrix in _matrices(model):
        norm = torch.linalg.vector_norm(matrix.detach(), dtype=torch.float32).item()
        kind = LAYER.sub(r"\1.*.", name)
        sizes.setdefault(kind, []).append(norm / matrix.numel() ** 0.5)
    return sizes


def _matrices(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1 and tensor.numel() and tensor.is_floating_point():
            yield name, tensor
