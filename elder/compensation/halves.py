"""Halves: of a kept layer and one that went beside it, the attention of one and the MLP of the other make up one layer.

Attention and MLP can be missed apart (BlockPruner, arXiv 2406.10594), but a checkpoint without one of them in some
layer is no stock checkpoint any more. Put together from two layers, what stays is. This project's own reading: with k
the kept layer and r each that it stands for, attention of k with the MLP of r and attention of r with the MLP of k are
tried in its place, and k itself; what costs the least next-token loss on calibration blocks stays, from the first gap
to the last, each with what was chosen before it. Nothing is trained.
"""

import torch
from pydantic import Field
from torch import nn

from elder.compensation.base import Group, Pruned, find_groups, register
from elder.compensation.channels import Layout, layout_of, refuse_other_layouts
from elder.model.forward import block_losses
from elder.model.layers import find_layers
from elder.params import Section
from elder.progress import meter
from elder.record import Json

Pair = tuple[int, int]  # layers of the dense model: whose attention, whose MLP


class HalvesSettings(Section):
    """What the choice of halves depends on."""

    samples: int = Field(
        32, ge=1, description="calibration blocks that each pair of halves is tried on"
    )


@register(
    "halves",
    settings=HalvesSettings,
    paper="arXiv 2406.10594",
    check=refuse_other_layouts,
)
@torch.no_grad()
def halves(pruned: Pruned[HalvesSettings]) -> dict[str, Json]:
    """Make each kept layer that stands for others out of the two halves that lose least.

    Returns:
        {gaps: [{removed, into, attention, mlp, tried}], tokens}; ``attention`` and ``mlp`` say of which layer of the
        dense model they are, ``tried`` how many pairs there were.

    Raises:
        UserError: for layers that have no known layout, or are not alike.
    """
    layers = find_layers(pruned.dense)
    groups = find_groups(pruned.removed, len(layers))
    blocks = pruned.blocks[: pruned.settings.samples]
    layouts = [layout_of(pruned.dense, one.members, blocks[:1]) for one in groups]
    trials = 0
    for group in groups:
        trials += len(pairs_of(group))
    records: list[Json] = []
    with meter("halves", trials) as step:
        for group, layout in zip(groups, layouts, strict=True):
            layer = find_layers(pruned.model)[group.place]
            losses = {}
            for pair in pairs_of(group):
                put_together(layer, layers, pair, layout)
                each = block_losses(pruned.model, blocks, pruned.batch)
                losses[pair] = each.mean().item()
                step(f"loss {losses[pair]:.3f}")
            best = min(losses, key=lambda pair: losses[pair])
            put_together(layer, layers, best, layout)
            attention, mlp = best
            records.append(
                {
                    "removed": group.removed,
                    "into": group.kept,
                    "attention": attention,
                    "mlp": mlp,
                    "tried": len(losses),
                }
            )
    return {"gaps": records, "tokens": trials * blocks.numel()}


def pairs_of(group: Group) -> list[Pair]:
    """Return the pairs of halves to try for a group, the kept layer itself first."""
    kept = group.kept
    pairs = [(kept, kept)]
    for gone in group.removed:
        pairs += [(kept, gone), (gone, kept)]
    return pairs


def put_together(
    layer: nn.Module, layers: nn.ModuleList, pair: Pair, layout: Layout
) -> None:
    """Give a layer the attention of one layer and the MLP of another, each with the norm before it."""
    attention, mlp = pair
    for path in layout.paths:
        index = attention if path in layout.attention else mlp
        source = layers[index].get_submodule(path)
        target = layer.get_submodule(path)
        for name, weight in source.named_parameters():
            parameter = target.get_parameter(name)
            parameter.copy_(weight)
