"""Concatenate, CoMe (arXiv 2510.15304): the most sensitive heads and channels of neighbouring layers make up one layer.

A kept layer and those that went beside it are laid side by side, and the heads and channels with the highest
sensitivity stay, as many as one layer has:

    sensitivity of channel j = ||x_j|| ||w_j||        x_j over calibration tokens, w_j the column that reads it

The paper gives the measure, activation times weight norm, and that channels of adjacent layers are put together. This
project's own reading: each layer is measured where it stands in the dense model; channels are those of the MLP and of
attention's last projection; since a head goes or stays as a whole, with the key-value head that it shares, its channels
count together (the sum of squares); and the norms' gains are taken into the matrices, as `channels.py` has it. The
paper merges layer by layer and distils afterwards; here a run of layers is merged at once, and any recovery may follow.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elder.compensation.base import Group, Pruned, find_groups, register
from elder.compensation.channels import (
    Layout,
    head_scores,
    layout_of,
    refuse_other_layouts,
    side_by_side,
    strongest,
    write,
)
from elder.compensation.states import states_at
from elder.model.layers import find_layers
from elder.params.catalogue import NoSettings
from elder.record import Json


@register("concatenate", paper="arXiv 2510.15304", check=refuse_other_layouts)
@torch.no_grad()
def concatenate(pruned: Pruned[NoSettings]) -> dict[str, Json]:
    """Make each kept layer that stands for others out of the heads and channels of all of them.

    Returns:
        {gaps: [{removed, into, heads, channels}], tokens}; ``heads`` and ``channels`` say how many of each member's
        stay, key-value heads of attention and channels of the MLP, in the order of the dense model's layers.

    Raises:
        UserError: for layers that have no known layout, or are not alike.
    """
    layers = find_layers(pruned.dense)
    groups = find_groups(pruned.removed, len(layers))
    first = pruned.blocks[:1]
    layouts = [layout_of(pruned.dense, group.members, first) for group in groups]
    records = []
    for group, layout in zip(groups, layouts, strict=True):
        norms = measure(pruned, group, layout)
        members = [layers[index] for index in group.members]
        wide = side_by_side(members, layout, head_dim_of(members[0]))
        scores = {}
        for path in (layout.attention_out, layout.outer):
            columns = wide.parts[f"{path}.weight"].norm(dim=0)
            scores[path] = norms[path] * columns
        heads = strongest(
            head_scores(scores[layout.attention_out], wide.groups),
            wide.groups // len(members),
        )
        channels = strongest(scores[layout.outer], wide.features // len(members))
        write(find_layers(pruned.model)[group.place], wide.narrow(heads, channels))
        kept = Kept(heads, channels, wide.groups, wide.features)
        records.append(kept.record(group))
    return {"gaps": records, "tokens": pruned.blocks.numel()}


@dataclass(frozen=True)
class Kept:
    """What stays of a group: indices of heads and channels, of so many of all layers together."""

    heads: Tensor
    channels: Tensor
    groups: int
    features: int

    def record(self, group: Group) -> dict[str, Json]:
        """Return what stays of each member, as plain values."""
        count = len(group.members)
        heads = self.heads // (self.groups // count)
        channels = self.channels // (self.features // count)
        return {
            "removed": group.removed,
            "into": group.kept,
            "heads": heads.bincount(minlength=count).tolist(),
            "channels": channels.bincount(minlength=count).tolist(),
        }


def measure(pruned: Pruned[Any], group: Group, layout: Layout) -> dict[str, Tensor]:
    """Return the norms of what the last projections read in the dense model: {path: (members x features,) float64}."""
    layers = find_layers(pruned.dense)
    squares: dict[str, list[Tensor]] = {layout.attention_out: [], layout.outer: []}
    hooks = []
    for index in group.members:
        for path, sums in squares.items():
            module: Any = layers[index].get_submodule(path)
            width = module.weight.shape[1]
            sums.append(module.weight.new_zeros(width, dtype=torch.float64))
            hooks.append(module.register_forward_pre_hook(_adding(sums[-1])))
    try:
        for ids in pruned.blocks.split(pruned.batch):
            states_at(pruned.dense, group.members[-1], ids)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: torch.cat(sums).sqrt() for path, sums in squares.items()}


def _adding(sums: Tensor) -> Any:
    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        sums.add_(given[0].double().flatten(0, -2).square().sum(dim=0))

    return hook


def head_dim_of(layer: nn.Module) -> int:
    """Return the size of an attention head."""
    size: int = layer.self_attn.head_dim  # type: ignore[union-attr, assignment]
    return size
