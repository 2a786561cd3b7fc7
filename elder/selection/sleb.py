"""SLEB (arXiv 2402.09025): greedily remove the layer whose absence costs the least loss, never the first or the last.

The states that enter layer j are the same for every candidate from j on. So one pass keeps the state before each
layer, and each candidate is run from there: about half the work of a pass a candidate, and exactly the same answer.
"""

from dataclasses import replace

import torch

from elder.model.layers import LayerControl, find_layers
from elder.params.catalogue import NoSettings
from elder.progress import meter
from elder.selection.base import Problem, Round, Selection, lowest, offered, register
from elder.selection.candidates import candidate_losses


@register("sleb", paper="arXiv 2402.09025")
def select(problem: Problem[NoSettings]) -> Selection:
    """Remove one layer a round: the one without which the summed loss on the blocks is the lowest."""
    layers = find_layers(problem.model)
    ends = frozenset({0, len(layers) - 1})
    problem = replace(problem, protected=problem.protected | ends)
    batches = problem.blocks.split(problem.forward_batch)
    rounds: list[Round] = []
    gone: set[int] = set()
    with (
        torch.no_grad(),
        LayerControl(layers) as control,
        meter("sleb", problem.count * len(batches)) as step,
    ):
        for _ in range(problem.count):
            alive = offered(problem, len(layers), gone)
            totals = candidate_losses(
                problem.model, control, alive, gone, batches, step
            )
            values = [totals.get(index) for index in range(len(layers))]
            removed = lowest(values, 1)
            gone |= set(removed)
            rounds.append(Round(removed, tuple(values)))
    return Selection(
        tuple(r.removed[0] for r in rounds), "loss without the layer", tuple(rounds)
    )
