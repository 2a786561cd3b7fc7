"""ShortGPT (arXiv 2403.03853): the layers that turn the hidden state the least go, all at once."""

import torch
import torch.nn.functional as F

from elder.model.forward import run_layers
from elder.model.layers import LayerControl, find_layers
from elder.parallel.ranks import count, share
from elder.params.catalogue import NoSettings
from elder.progress import meter
from elder.selection.base import Problem, Round, Selection, lowest, offered, register


def influence(entering: torch.Tensor, leaving: torch.Tensor) -> torch.Tensor:
    """Return the summed block influence, the sum over tokens of 1 - cos(h_i, h_{i+1}), a scalar in float64."""
    return (
        (1 - F.cosine_similarity(entering.float(), leaving.float(), dim=-1))
        .double()
        .sum()
    )


@register("shortgpt", paper="arXiv 2403.03853", divided=True)
def select(problem: Problem[NoSettings]) -> Selection:
    """Score each layer by its mean block influence in one forward pass; the lowest go.

    The output of the last layer is taken before the final norm. ShortGPT itself protects no layer.
    """
    layers = find_layers(problem.model)
    alive = offered(problem, len(layers))
    batches = problem.blocks.split(problem.forward_batch)
    with (
        torch.no_grad(),
        LayerControl(layers) as control,
        meter("block influence", len(batches)) as step,
    ):

        def influences(ids: torch.Tensor) -> torch.Tensor:
            found = torch.zeros(len(layers), dtype=torch.float64)

            def observe(index: int, *states: torch.Tensor) -> None:
                found[index] = influence(*states).cpu()

            control.observe = observe
            run_layers(problem.model, ids)
            step(steps=count())
            return found

        totals = torch.stack(share(batches, influences)).sum(dim=0)
    means = (totals / problem.blocks.numel()).tolist()
    values = [means[index] if index in alive else None for index in range(len(layers))]
    removed = lowest(values, problem.count)
    return Selection(removed, "block influence", (Round(removed, tuple(values)),))
