"""ShortGPT (arXiv 2403.03853): the layers that turn the hidden state the least go, all at once."""

import torch
import torch.nn.functional as F

from elder.model.forward import run_layers
from elder.model.layers import LayerControl, find_layers
from elder.params.catalogue import NoSettings
from elder.progress import track
from elder.selection.base import Problem, Round, Selection, lowest, offered, register


def influence(entering: torch.Tensor, leaving: torch.Tensor) -> torch.Tensor:
    """Return the summed block influence, the sum over tokens of 1 - cos(h_i, h_{i+1}), a scalar in float64."""
    return (
        (1 - F.cosine_similarity(entering.float(), leaving.float(), dim=-1))
        .double()
        .sum()
    )


@register("shortgpt", paper="arXiv 2403.03853")
def select(problem: Problem[NoSettings]) -> Selection:
    """Score each layer by its mean block influence in one forward pass; the lowest go.

    The output of the last layer is taken before the final norm. ShortGPT itself protects no layer.
    """
    layers = find_layers(problem.model)
    alive = offered(problem, len(layers))
    totals = torch.zeros(len(layers), dtype=torch.float64)

    def observe(index: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        totals[index] += influence(entering, leaving).cpu()

    batches = problem.blocks.split(problem.forward_batch)
    with torch.no_grad(), LayerControl(layers) as control:
        control.observe = observe
        for ids in track(batches, "block influence", len(batches)):
            run_layers(problem.model, ids)
    means = (totals / problem.blocks.numel()).tolist()
    values = [means[index] if index in alive else None for index in range(len(layers))]
    removed = lowest(values, problem.count)
    return Selection(removed, "block influence", (Round(removed, tuple(values)),))
