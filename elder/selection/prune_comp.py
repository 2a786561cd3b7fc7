"""Prune&Comp (arXiv 2507.18212): layers go one by one, and each gap is scaled at once, before the next layer is scored.

A layer that goes leaves the hidden state too small for those after it, which misleads every score taken then. So where
layer l went, the state is multiplied by

    alpha_l = mean ||h_{l+1}|| / mean ||h_l||      (means over calibration tokens)

in all that follows. The paper takes any score; here it is ShortGPT's block influence, measured anew each round on the
model as scaled so far. The compensation ``magnitude``, which this method's recipe names, folds the scales into the
weights; it measures them once more, gap by gap on the dense model.
"""

from dataclasses import dataclass

import torch

from elder.errors import UserError
from elder.model.forward import run_layers
from elder.model.layers import LayerControl, find_layers
from elder.parallel.ranks import count, share
from elder.params.catalogue import NoSettings
from elder.progress import Meter, meter
from elder.selection.base import Problem, Round, Selection, lowest, offered, register
from elder.selection.shortgpt import influence


@register(
    "prune-comp",
    paper="arXiv 2507.18212",
    recipe={"compensate": {"method": "magnitude"}},
    divided=True,
)
def select(problem: Problem[NoSettings]) -> Selection:
    """Remove the layer with the lowest block influence, scale the gap, and begin anew, until ``count`` are gone.

    Raises:
        UserError: for a layer whose states have no size to scale.
    """
    layers = find_layers(problem.model)
    gone: set[int] = set()
    rounds: list[Round] = []
    passes = problem.count * len(problem.blocks.split(problem.forward_batch))
    with (
        torch.no_grad(),
        LayerControl(layers) as control,
        meter("prune-comp", passes) as step,
    ):
        for _ in range(problem.count):
            alive = offered(problem, len(layers), gone)
            seen = look(problem, control, step)
            values: list[float | None] = [None] * len(layers)
            for index in alive:
                values[index] = seen.influence[index]
            (chosen,) = lowest(values, 1)
            gone.add(chosen)
            control.bypassed = set(gone)
            control.scales[chosen] = seen.scale(chosen)
            rounds.append(Round((chosen,), tuple(values)))
    removed = tuple(one.removed[0] for one in rounds)
    return Selection(removed, "block influence", tuple(rounds))


@dataclass(frozen=True)
class Seen:
    """What the layers did to the states of all blocks.

    Attributes:
        influence: mean block influence of each layer, over tokens.
        entering: mean L2 norm of what enters each layer.
        leaving: that of what leaves it.
    """

    influence: list[float]
    entering: list[float]
    leaving: list[float]

    def scale(self, layer: int) -> float:
        """Return alpha of a layer."""
        if not self.entering[layer] or not self.leaving[layer]:
            raise UserError(
                f"prune-comp scales the hidden state where a layer went, but what enters or leaves layer {layer} is 0 "
                "for all tokens; choose another selection method"
            )
        return self.leaving[layer] / self.entering[layer]


def look(problem: Problem[NoSettings], control: LayerControl, step: Meter) -> Seen:
    """Run the layers that are left on all blocks."""
    layers = len(control.layers)

    def sums(ids: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(3, layers, dtype=torch.float64)

        def observe(index: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
            found[0, index] = influence(entering, leaving).cpu()
            for row, state in ((1, entering), (2, leaving)):
                found[row, index] = state.float().norm(dim=-1).double().sum().cpu()

        control.observe = observe
        run_layers(problem.model, ids)
        control.observe = None
        step(steps=count())
        return found

    parts = share(problem.blocks.split(problem.forward_batch), sums)
    means = torch.stack(parts).sum(dim=0) / problem.blocks.numel()
    return Seen(*means.tolist())
