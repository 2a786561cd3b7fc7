"""Magnitude compensation, Prune&Comp (arXiv 2507.18212): close the gap in the hidden states' size after a removal.

Where layers went, the state should be scaled by

    alpha = mean ||dense state after them|| / mean ||dense state before them||      (means over calibration tokens)

The paper folds alpha into all that wrote to the residual stream before the gap, embeddings included. Layers read the
stream through a norm that takes out any factor common to the whole stream, and so does the final norm. So this file
folds 1/alpha into what the layers AFTER the gap write instead: the same function, up to the epsilon of the norms, and
embeddings, tied or not, stay as they are.
"""

import math
from typing import Any

import torch
from torch import nn

from elder.compensation.base import Gap, Pruned, find_gaps, register
from elder.errors import UserError
from elder.model.forward import logits_of, run_layers
from elder.model.layers import LayerControl, find_layers
from elder.params.catalogue import NoSettings
from elder.record import Json

# the last projection of attention, of an MLP or of its experts, as the families of transformers name it; that nothing
# else writes to the stream is checked by running the model
WRITERS = {
    "o_proj",
    "out_proj",
    "dense",
    "c_proj",
    "wo",
    "down_proj",
    "dense_4h_to_h",
    "fc2",
    "fc_out",
    "w2",
}
CHECKED = 64  # tokens of that check: enough for a median, and few logits
TOLERANCE = 0.2  # its error over effect, the median over tokens; the norms' epsilon stays below it


@torch.no_grad()
def check_scaling(model: Any, ids: torch.Tensor) -> None:
    """Check on a few tokens that folding a scale of 2 equals scaling the stream, and that the final norm undoes it.

    Raises:
        UserError: if not.
    """
    layers = find_layers(model)
    states: dict[str, torch.Tensor] = {}
    with LayerControl(layers) as control:

        def run(**steering: Any) -> tuple[torch.Tensor, torch.Tensor]:
            control.replay, control.weights = (
                steering.get("replay", {}),
                steering.get("weights"),
            )
            logits = logits_of(model, ids).float()
            return states["leaving"].float(), logits

        def observe(index: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
            states["leaving"] = leaving
            if index == 0:
                states.setdefault("entering", entering)

        control.observe, control.place = observe, "output"
        plain, logits = run()
        scaled, _ = run(replay={0: 2 * states["entering"]})
        last = torch.ones(len(layers), device=plain.device)
        last[-1] = 2.0
        _, undone = run(weights=last)
        kept = [
            (p, p.detach().to("cpu", copy=True))
            for layer in layers
            for p in writing_parameters(layer)
        ]
        fold(model, {0: 2.0})
        folded, _ = run()
        for parameter, value in kept:
            parameter.copy_(value)
    if off(2 * folded, scaled, scaled - 2 * plain) > TOLERANCE:
        what = "its layers read the residual stream without a norm, or write to it through one"
    elif off(undone, logits, logits) > TOLERANCE:
        what = "it has no norm after its last layer"
    else:
        return
    raise UserError(
        f"{type(model).__name__} cannot be compensated by magnitude: {what}; set compensate.method to linear or none"
    )


@register(
    "magnitude",
    paper="arXiv 2507.18212",
    check=check_scaling,
    everywhere=True,
)
def magnitude(pruned: Pruned[NoSettings]) -> dict[str, Json]:
    """Scale what the layers after each gap write; the record holds each gap's alpha.

    Raises:
        UserError: for a family whose residual stream cannot be scaled so, such as one with a norm after a projection.
    """
    check_scaling(pruned.model, pruned.blocks[:1, :CHECKED])
    gaps = find_gaps(pruned.removed, len(find_layers(pruned.dense)))
    scales = measure(pruned.dense, gaps, pruned.blocks, pruned.batch)
    fold(
        pruned.model,
        {gap.place: scale for gap, scale in zip(gaps, scales, strict=True)},
    )
    return {
        "gaps": [
            {"removed": gap.layers, "scale": scale}
            for gap, scale in zip(gaps, scales, strict=True)
        ],
        "tokens": pruned.blocks.numel(),
    }


@torch.no_grad()
def measure(
    dense: Any, gaps: list[Gap], blocks: torch.Tensor, batch: int
) -> list[float]:
    """Return alpha of each gap: the mean L2 norm of the dense state after its layers over that before them."""
    layers = find_layers(dense)
    before, after = (
        {edge(gap): 0.0 for gap in gaps}
        for edge in (lambda g: g.start, lambda g: g.stop - 1)
    )

    def observe(index: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        for sums, state in ((before, entering), (after, leaving)):
            if index in sums:
                sums[index] += (
                    torch.linalg.vector_norm(state.float(), dim=-1)
                    .double()
                    .sum()
                    .item()
                )

    with LayerControl(layers) as control:
        control.observe = observe
        for ids in blocks.split(batch):
            run_layers(dense, ids, max(after))
    scales = [
        after[gap.stop - 1] / before[gap.start] if before[gap.start] else math.nan
        for gap in gaps
    ]
    if not all(0 < scale < math.inf for scale in scales):
        raise UserError(
            "the hidden states of the dense model are not finite: load it with --dtype float32"
        )
    return scales


@torch.no_grad()
def fold(model: Any, scales: dict[int, float]) -> None:
    """Make the model as if the state entering layer ``place`` were multiplied by its scale, for each place at once."""
    factor = 1.0
    for place, layer in enumerate(find_layers(model)):
        factor *= scales.get(place, 1.0)
        for parameter in writing_parameters(layer) if factor != 1 else ():
            parameter.copy_(parameter.float() / factor)


def off(actual: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    """Return the median over tokens of ||actual - expected|| / ||scale||; a router's rare change of mind is fine."""
    return (
        ((actual - expected).norm(dim=-1) / scale.norm(dim=-1))
        .nan_to_num(math.inf)
        .median()
        .item()
    )


def writing_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """Return the weights and biases of a layer that write to the residual stream, those of experts (3-D) included."""
    writing = []
    for name, parameter in layer.named_parameters():
        *owners, last = name.split(".")
        owner = (
            owners[-1]
            if last in ("weight", "bias") and owners
            else last.removesuffix("_bias")
        )
        if owner in WRITERS:
            writing.append(parameter)
    return writing
