"""SLEB (arXiv 2402.09025): greedily remove the layer whose absence costs the least loss, never the first or the last.

The states that enter layer j are the same for every candidate from j on. So one pass keeps the state before each
layer, and each candidate is run from there: about half the work of a pass a candidate, and exactly the same answer.
With ``racing``, this project's own addition, candidates leave before they have seen all blocks: see `trials`.
"""

from dataclasses import replace

from pydantic import Field

from elder.model.layers import LayerControl, find_layers
from elder.params import Section
from elder.progress import meter, say
from elder.selection.base import Problem, Round, Selection, offered, register
from elder.selection.trials import Trials


class SlebSettings(Section):
    """What a greedy removal depends on."""

    racing: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="candidates leave once they lose with this confidence; null: all see all blocks",
    )


@register("sleb", settings=SlebSettings, paper="arXiv 2402.09025", divided=True)
def select(problem: Problem[SlebSettings]) -> Selection:
    """Remove one layer a round: the one without which the summed loss on the blocks is the lowest."""
    layers = find_layers(problem.model)
    ends = frozenset({0, len(layers) - 1})
    problem = replace(problem, protected=problem.protected | ends)
    blocks, confidence = problem.blocks, problem.settings.racing
    rounds: list[Round] = []
    gone: set[int] = set()
    with (
        LayerControl(layers) as control,
        meter("sleb", problem.count * len(blocks)) as step,
    ):
        trials = Trials(problem, control, blocks, confidence, step)
        for number in range(problem.count):
            tried = trials(offered(problem, len(layers), gone), gone, number)
            values = [tried.losses.get(index) for index in range(len(layers))]
            gone.add(tried.least_missed)
            rounds.append(Round((tried.least_missed,), tuple(values), blocks=tried.run))
    if confidence:
        say(f"sleb: {trials.told()}")
    return Selection(
        tuple(r.removed[0] for r in rounds), "loss without the layer", tuple(rounds)
    )
