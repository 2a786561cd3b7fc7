"""SLEB (arXiv 2402.09025): greedily remove the layer whose absence costs the least loss, never the first or the last.

The states that enter layer j are the same for every candidate from j on. So one pass keeps the state before each
layer, and each candidate is run from there: about half the work of a pass a candidate, and exactly the same answer.
"""

from collections.abc import Sequence
from typing import Any

import torch

from elder.forward import logits_of, next_token_losses
from elder.layers import LayerControl, find_layers
from elder.methods.base import Problem, Round, Selection, lowest, offered, register
from elder.progress import Meter, meter


@register("sleb")
def select(problem: Problem) -> Selection:
    """Remove one layer a round: the one without which the summed loss on the blocks is the lowest."""
    layers = find_layers(problem.model)
    ends = frozenset({0, len(layers) - 1})
    problem = Problem(**{**vars(problem), "protected": problem.protected | ends})
    batches = problem.blocks.split(problem.settings.forward_batch)
    rounds: list[Round] = []
    gone: set[int] = set()
    with torch.no_grad(), LayerControl(layers) as control, meter("sleb", problem.count * len(batches)) as step:
        for _ in range(problem.count):
            alive = offered(problem, len(layers), gone)
            totals = candidate_losses(problem.model, control, alive, gone, batches, step)
            values = [totals.get(index) for index in range(len(layers))]
            removed = lowest(values, 1)
            gone |= set(removed)
            rounds.append(Round(removed, tuple(values)))
    return Selection(tuple(r.removed[0] for r in rounds), "loss without the layer", tuple(rounds))


def candidate_losses(
    model: Any,
    control: LayerControl,
    alive: Sequence[int],
    gone: set[int],
    batches: tuple[torch.Tensor, ...],
    step: Meter | None = None,
) -> dict[int, float]:
    """Return the mean loss over all blocks without each of ``alive``, the layers in ``gone`` being bypassed already."""
    totals = dict.fromkeys(alive, 0.0)
    for ids in batches:
        states: dict[int, torch.Tensor] = {}
        control.bypassed, control.replay = gone, {}

        def keep(index: int, entering: torch.Tensor, _: torch.Tensor, kept: dict = states) -> None:
            if index in alive:
                kept[index] = entering

        control.observe = keep
        logits_of(model, ids)
        control.observe = None
        for candidate in alive:
            control.bypassed = gone | set(range(candidate + 1))
            control.replay = {candidate: states[candidate]}
            totals[candidate] += next_token_losses(logits_of(model, ids), ids).double().sum().item()
        if step:
            step()
    control.bypassed, control.replay = set(), {}
    return {index: total / sum(map(len, batches)) for index, total in totals.items()}
