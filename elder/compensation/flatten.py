"""Flatten, FlattenGPT (arXiv 2602.08858): neighbouring layers run side by side as one wide layer, cut back in width.

The wide layer has the heads and channels of all its layers, which read the same stream: attention of all of them first,
then the MLPs of all of them on the sum. Cut back to the width of one layer it keeps the strongest heads; of the MLP it
keeps the channels S of the highest ridge leverage, and its last projection W becomes that of least squares (Nystroem):

    C = sum over calibration tokens of x'x       x what W reads, in the wide layer
    leverage = diagonal of C (C + lambda)^-1     W_S = (C_SS + lambda)^-1 C_S W

The paper gives the order, flattening first and width pruning after it, and Nystroem for the MLP. This project's own
reading: the stream that enters is that of the model mended so far; a head with its key-value head is scored by
activation times weight norm, as in `concatenate`; the states behind attention are those of the heads that stay, so that
the channels are chosen for what they will read; and runs of more than two layers are flattened at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from elder.compensation.base import Group, Pruned, find_groups, register
from elder.compensation.channels import (
    Layout,
    Wide,
    head_scores,
    layout_of,
    refuse_other_layouts,
    side_by_side,
    strongest,
    write,
)
from elder.compensation.concatenate import Kept, head_dim_of
from elder.compensation.states import LoneLayer, states_at
from elder.model.layers import find_layers
from elder.params import Section
from elder.record import Json


class FlattenSettings(Section):
    """What the cut of the wide MLP depends on."""

    ridge: float = Field(
        0.01, gt=0, description="ridge of the least squares, in mean squares"
    )


@register(
    "flatten",
    settings=FlattenSettings,
    paper="arXiv 2602.08858",
    check=refuse_other_layouts,
)
@torch.no_grad()
def flatten(pruned: Pruned[FlattenSettings]) -> dict[str, Json]:
    """Make each kept layer that stands for others a wide layer of all of them, cut back in width.

    Returns:
        {gaps: [{removed, into, heads, channels}], tokens}, as `concatenate`.

    Raises:
        UserError: for layers that have no known layout, or are not alike.
    """
    layers = find_layers(pruned.dense)
    groups = find_groups(pruned.removed, len(layers))
    first = pruned.blocks[:1]
    layouts = [layout_of(pruned.dense, group.members, first) for group in groups]
    records = []
    for group, layout in zip(groups, layouts, strict=True):
        members = [layers[index] for index in group.members]
        wide = side_by_side(members, layout, head_dim_of(members[0]))
        flat = Flat(pruned, group, layout, wide)
        heads = strongest(
            head_scores(flat.attention_scores(), wide.groups),
            wide.groups // len(members),
        )
        moments = flat.moments(heads)
        outer = wide.parts[f"{layout.outer}.weight"]
        count = wide.features // len(members)
        channels, cut = nystroem(moments, outer, count, pruned.settings.ridge)
        parts = wide.narrow(heads, channels)
        write(
            find_layers(pruned.model)[group.place],
            parts | {f"{layout.outer}.weight": cut},
        )
        kept = Kept(heads, channels, wide.groups, wide.features)
        records.append(kept.record(group))
    return {"gaps": records, "tokens": pruned.blocks.numel()}


def nystroem(
    moments: Tensor, outer: Tensor, count: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """Choose channels by ridge leverage, and return them with the projection that makes up for the others.

    Args:
        moments: C, (features, features) float64.
        outer: the projection of all channels, (hidden, features) float64.
        count: how many stay.
        ridge: relative to the mean diagonal of C.

    Returns:
        Indices, ascending, and the projection that reads them, (hidden, count) float64.
    """
    smallest = torch.finfo(torch.float64).tiny
    strength = max(ridge * moments.diagonal().mean().item(), smallest)
    identity = torch.eye(len(moments)).to(moments)
    leverage = torch.linalg.solve(moments + strength * identity, moments).diagonal()
    chosen = strongest(leverage, count)
    square = moments[chosen][:, chosen] + strength * identity[:count, :count]
    # (count, hidden)
    cut = torch.linalg.solve(square, moments[chosen] @ outer.T)
    return chosen, cut.T


@dataclass(frozen=True)
class Flat:
    """The layers of a group side by side, run by the dense model's own layers, on the stream that enters the group.

    Attributes:
        pruned: both models, and the blocks.
        group: the layers.
        layout: of each of them.
        wide: their heads and channels together.
    """

    pruned: Pruned[Any]
    group: Group
    layout: Layout
    wide: Wide

    def attention_scores(self) -> Tensor:
        """Return activation times weight norm of all channels of attention, (members x features,) float64."""
        out = self.wide.parts[f"{self.layout.attention_out}.weight"]
        squares = out.new_zeros(out.shape[1])
        for ids in self.pruned.blocks.split(self.pruned.batch):
            read = self.run(self.entering(ids), self.layout.attention_out)
            squares += read.square().sum(dim=0)
        return squares.sqrt() * out.norm(dim=0)

    def moments(self, heads: Tensor) -> Tensor:
        """Return C of the channels of all MLPs, behind the attention of some heads, (features, features) float64."""
        mixed = self.attention_of(heads)
        total = mixed.new_zeros(self.wide.features, self.wide.features)
        for ids in self.pruned.blocks.split(self.pruned.batch):
            entering = self.entering(ids)
            read = self.run(entering, self.layout.attention_out)
            written = read @ mixed.T  # (tokens, hidden)
            bias = self.wide.parts.get(f"{self.layout.attention_out}.bias")
            if bias is not None:
                written = written + bias
            features = self.run(entering, self.layout.outer, written)
            total += features.T @ features
        return total

    def attention_of(self, heads: Tensor) -> Tensor:
        """Return the last projection of attention, (hidden, features) float64, where all other heads write nothing."""
        out = self.wide.parts[f"{self.layout.attention_out}.weight"]
        mask = out.new_zeros(self.wide.groups)
        mask[heads] = 1
        return out * mask.repeat_interleave(out.shape[1] // self.wide.groups)

    def entering(self, ids: Tensor) -> Tensor:
        """Return the stream that enters the group, (batch, tokens, hidden), in the model mended so far."""
        return states_at(self.pruned.model, self.group.place, ids)[0]

    def run(
        self, entering: Tensor, path: str, attention: Tensor | None = None
    ) -> Tensor:
        """Return what a projection of each layer reads, one beside the other, (tokens, members x features) float64.

        Args:
            entering: the stream, (batch, tokens, hidden).
            path: of the projection.
            attention: what attention puts out in place of each layer's own, (tokens, hidden).
        """
        found = []
        for index in self.group.members:
            layer = find_layers(self.pruned.dense)[index]
            own = layer.get_submodule(self.layout.attention_out)
            read: list[Tensor] = []
            watched = layer.get_submodule(path).register_forward_pre_hook(
                lambda _, given, read=read: read.append(given[0])
            )
            with (
                LoneLayer(self.pruned.dense, index) as alone,
                putting_out(own, attention),
            ):
                alone(entering)
            watched.remove()
            found.append(read[0].double().reshape(entering.shape[:2].numel(), -1))
        return torch.cat(found, dim=1)


@contextmanager
def putting_out(module: nn.Module, value: Tensor | None) -> Iterator[None]:
    """Let a module put out a value, (tokens, features), in place of its own; None changes nothing."""
    if value is None:
        yield
        return
    hook = module.register_forward_hook(
        lambda _, __, output: value.to(output).reshape(output.shape)
    )
    try:
        yield
    finally:
        hook.remove()
