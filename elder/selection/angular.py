"""The angular-distance block (arXiv 2403.17887, "The Unreasonable Ineffectiveness of the Deeper Layers").

The k adjacent layers l..l+k-1 go for which the states h_l and h_{l+k} have the smallest angular distance.
"""

import math

import torch
import torch.nn.functional as F

from elder.errors import UserError
from elder.model.forward import run_layers
from elder.model.layers import LayerControl, find_layers
from elder.parallel.ranks import count, share
from elder.params.catalogue import NoSettings
from elder.progress import meter
from elder.selection.base import Problem, Round, Selection, lowest, offered, register


def angular_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return arccos(cos(a, b)) / pi over the last dimension, from 0 (the same direction) to 1 (the opposite)."""
    return F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos() / math.pi


@register("angular", paper="arXiv 2403.17887", divided=True)
def select(problem: Problem[NoSettings]) -> Selection:
    """Score each block of k adjacent layers, at its first layer, at the last token; the lowest goes, in layer order.

    The distance is the mean over the calibration blocks, and the state after the last layer is taken before the final
    norm. A block that holds a protected layer is not offered.

    Raises:
        UserError: if the protected layers leave no block of k.
    """
    layers = find_layers(problem.model)
    alive = set(offered(problem, len(layers)))
    width = problem.count
    starts = [
        first
        for first in range(len(layers))
        if alive.issuperset(range(first, first + width))
    ]
    if not starts:
        raise UserError(
            f"angular removes {width} adjacent layers, but with {sorted(problem.protected)} protected no {width} of "
            f"{len(layers)} are adjacent; protect fewer or remove fewer"
        )
    states = last_token_states(problem)
    values: list[float | None] = [None] * len(layers)
    for first in starts:
        values[first] = (
            angular_distance(states[first], states[first + width]).mean().item()
        )
    (best,) = lowest(values, 1)
    removed = tuple(range(best, best + width))
    return Selection(
        removed,
        "angular distance of the block from here",
        (Round(removed, tuple(values)),),
    )


@torch.no_grad()
def last_token_states(problem: Problem[NoSettings]) -> torch.Tensor:
    """Return the last token's state before each layer and after the last, (layers + 1, blocks, hidden) float64."""
    batches = problem.blocks.split(problem.forward_batch)
    layers = find_layers(problem.model)
    with (
        LayerControl(layers) as control,
        meter("angular distance", len(batches)) as step,
    ):

        def last_states(ids: torch.Tensor) -> torch.Tensor:
            states: list[torch.Tensor] = []

            def observe(
                index: int, entering: torch.Tensor, leaving: torch.Tensor
            ) -> None:
                states.append(entering[:, -1].double().cpu())
                if index == len(layers) - 1:
                    states.append(leaving[:, -1].double().cpu())

            control.observe = observe
            run_layers(problem.model, ids)
            step(steps=count())
            return torch.stack(states)

        return torch.cat(share(batches, last_states), dim=1)
