"""Floors, which follow no paper: choices that look at nothing. A method no better than these has found nothing."""

import torch

from elder.model.layers import find_layers
from elder.params.catalogue import NoSettings
from elder.selection.base import Problem, Round, Selection, lowest, offered, register


@register("random", divided=True)
def select_at_random(problem: Problem[NoSettings]) -> Selection:
    """Draw a number for each layer, by the seed; the lowest go."""
    count = len(find_layers(problem.model))
    drawn = torch.rand(
        count, generator=torch.Generator().manual_seed(problem.seed)
    ).tolist()
    return by_score(problem, drawn, "random number")


@register("last", divided=True)
def select_the_last(problem: Problem[NoSettings]) -> Selection:
    """Remove the last layers offered, from the top down."""
    count = len(find_layers(problem.model))
    return by_score(
        problem, [float(count - 1 - index) for index in range(count)], "layers above"
    )


def by_score(problem: Problem[NoSettings], scores: list[float], name: str) -> Selection:
    """Return the choice of the lowest scores among the layers offered, in one round."""
    alive = offered(problem, len(scores))
    values = [score if index in alive else None for index, score in enumerate(scores)]
    removed = lowest(values, problem.count)
    return Selection(removed, name, (Round(removed, tuple(values)),))
