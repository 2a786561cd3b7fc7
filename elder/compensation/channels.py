"""Several layers as the heads and channels of one: laid side by side, and cut back to the width of a single layer.

Layers side by side read the same stream and add up what they write. So their heads and the channels of their MLPs can
stand in one layer of that many times the width, and some of them in one of the stock width. Each layer has norms of its
own; their gains g are taken into the matrices that read behind them, beside one common gain for each hidden unit,
the root mean square of those of the layers: never larger than the largest, and no gain over it exceeds the root of the
number of layers. What a norm adds, b, becomes W b in the bias of what reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elder.compensation.states import states_at
from elder.errors import UserError
from elder.model.layers import find_layers
from elder.model.removal import layer_kind

TOLERANCE = 1e-2  # of the check that a norm multiplies by its weight


@dataclass(frozen=True)
class Layout:
    """Where a layer of some families keeps its parts, as paths inside it; together they are all that has weights.

    Attributes:
        before_attention: the norm before attention.
        queries: projection to queries.
        keys: projections to keys and to values.
        attention_out: last projection of attention.
        before_mlp: the norm before the MLP.
        inner: first projections of the MLP; one, or a gate and what it opens.
        outer: last projection of the MLP.
    """

    before_attention: str
    queries: str
    keys: tuple[str, str]
    attention_out: str
    before_mlp: str
    inner: tuple[str, ...]
    outer: str

    @property
    def reading(self) -> dict[str, tuple[str, ...]]:
        """Return {norm: projections that read behind it}."""
        return {
            self.before_attention: (self.queries, *self.keys),
            self.before_mlp: self.inner,
        }

    @property
    def attention(self) -> set[str]:
        """Return the parts of attention, the norm before it included; all others are the MLP's."""
        own = {self.before_attention, self.queries, *self.keys}
        return {*own, self.attention_out}

    @property
    def paths(self) -> set[str]:
        """Return all parts."""
        behind = {path for paths in self.reading.values() for path in paths}
        return {*self.reading, *behind, self.attention_out, self.outer}


LAYOUTS = (
    Layout(
        "input_layernorm",
        "self_attn.q_proj",
        ("self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
        "post_attention_layernorm",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
    ),
    Layout(
        "self_attn_layer_norm",
        "self_attn.q_proj",
        ("self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.out_proj",
        "final_layer_norm",
        ("fc1",),
        "fc2",
    ),
)


def find_layout(layer: nn.Module) -> Layout | None:
    """Return where a layer keeps its parts; None where it has others, or norms that are not of the usual kind."""
    owners = {
        path
        for path, module in layer.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    }
    for layout in LAYOUTS:
        if layout.paths == owners and _is_usual(layer, layout):
            return layout
    return None


def _is_usual(layer: nn.Module, layout: Layout) -> bool:
    """Say whether each norm is n(h) g + b, and there is a bias to take up what a norm adds."""
    for path, readers in layout.reading.items():
        norm = layer.get_submodule(path)
        bias = getattr(norm, "bias", None)
        if bias is not None and any(
            layer.get_submodule(reader).bias is None for reader in readers
        ):
            return False
        state = torch.linspace(-1, 2, len(norm.weight)).to(norm.weight)  # type: ignore[arg-type]
        plain = torch.func.functional_call(
            norm,
            {name: _neutral(name, value) for name, value in norm.named_parameters()},
            (state,),
        )
        expected = plain * norm.weight + (0 if bias is None else bias)
        if not torch.allclose(norm(state), expected, TOLERANCE, TOLERANCE):
            return False
    return True


def _neutral(name: str, value: Tensor) -> Tensor:
    return torch.ones_like(value) if name == "weight" else torch.zeros_like(value)


@torch.no_grad()
def refuse_other_layouts(model: Any, ids: Tensor) -> None:
    """Refuse a model with no two neighbouring layers that could become one, whichever layers go.

    Args:
        model: the dense model.
        ids: one block of tokens, (1, tokens) int64.

    Raises:
        UserError: naming the family.
    """
    count = len(find_layers(model))
    if not any(_alike(model, (index - 1, index), ids) for index in range(1, count)):
        raise _refusal(model, "its layers are")


def layout_of(model: Any, members: Sequence[int], ids: Tensor) -> Layout:
    """Return the layout that some layers of a model share.

    Args:
        model: the dense model.
        members: the layers.
        ids: one block of tokens, (1, tokens) int64.

    Raises:
        UserError: where they have none, or are not alike.
    """
    layout = _alike(model, members, ids)
    if layout is None:
        raise _refusal(model, f"layers {', '.join(map(str, members))} are")
    return layout


def _alike(model: Any, members: Sequence[int], ids: Tensor) -> Layout | None:
    layers = find_layers(model)
    first = members[0]
    layout = find_layout(layers[first])
    if layout is None or not all(_same(layers, first, index) for index in members):
        return None
    return layout if _norm_comes_first(model, first, layout, ids) else None


def _same(layers: nn.ModuleList, one: int, other: int) -> bool:
    """Say whether two layers are the same but for their weights and their indices."""
    mine, its = layer_kind(layers[one], one), layer_kind(layers[other], other)

    def value(kind: Mapping[str, object], name: str, index: int) -> object:
        # a number of heads, too, may happen to be the layer's index
        return index if kind[name] == "index" else kind[name]

    return mine.keys() == its.keys() and all(
        mine[name] == its[name] or value(mine, name, one) == value(its, name, other)
        for name in mine
    )


def _norm_comes_first(model: Any, index: int, layout: Layout, ids: Tensor) -> bool:
    """Say whether what enters a layer is what enters its first norm: OPT 350M, for one, has it behind attention."""
    norm = find_layers(model)[index].get_submodule(layout.before_attention)
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        entering, _ = states_at(model, index, ids)
    finally:
        hook.remove()
    return torch.equal(seen[0].flatten(), entering.flatten())


def _refusal(model: Any, what: str) -> UserError:
    return UserError(
        f"{type(model).__name__} cannot be compensated by heads and channels of several layers: {what} not alike, with "
        "one norm, separate query, key and value projections and one MLP each; set compensate.method to refit or none"
    )


@dataclass(frozen=True)
class Wide:
    """Layers side by side, as one of many times the width; float64.

    Attributes:
        layout: of each of them.
        parts: {path.weight or path.bias: tensor}. What reads behind a norm and what attention and MLP put out stand
            with all heads and channels, those of the first layer first; norms and the biases of the sums as one.
        groups: key-value heads of all layers together, each with the query heads that share it.
        features: channels of an MLP of all layers together.
    """

    layout: Layout
    parts: dict[str, Tensor]
    groups: int
    features: int

    def narrow(self, heads: Tensor, channels: Tensor) -> dict[str, Tensor]:
        """Return the weights of one layer with some of the heads and channels, ascending indices of both."""
        cut = dict(self.parts)
        for path in (self.layout.queries, *self.layout.keys):
            for name in (f"{path}.weight", f"{path}.bias"):
                if name in cut:
                    rows = cut[name].unflatten(0, (self.groups, -1))
                    cut[name] = rows[heads].flatten(0, 1)
        out = f"{self.layout.attention_out}.weight"
        cut[out] = cut[out].unflatten(1, (self.groups, -1))[:, heads].flatten(1, 2)
        for path in self.layout.inner:
            for name in (f"{path}.weight", f"{path}.bias"):
                if name in cut:
                    cut[name] = cut[name][channels]
        outer = f"{self.layout.outer}.weight"
        cut[outer] = cut[outer][:, channels]
        return cut


@torch.no_grad()
def side_by_side(layers: Sequence[nn.Module], layout: Layout, head_dim: int) -> Wide:
    """Lay layers of one layout side by side."""
    parts: dict[str, Tensor] = {}
    for norm, readers in layout.reading.items():
        gains = _stacked(layers, f"{norm}.weight")
        common = gains.square().mean(dim=0).sqrt()
        parts[f"{norm}.weight"] = common
        # a hidden unit that no layer reads is read by none
        shares = (gains / common).nan_to_num(0.0)
        for path in readers:
            weights = _stacked(layers, f"{path}.weight")
            parts[f"{path}.weight"] = (weights * shares[:, None, :]).flatten(0, 1)
            if layers[0].get_submodule(path).bias is not None:
                biases = _stacked(layers, f"{path}.bias")
                if getattr(layers[0].get_submodule(norm), "bias", None) is not None:
                    added = _stacked(layers, f"{norm}.bias")
                    biases = biases + torch.einsum("lij,lj->li", weights, added)
                    parts[f"{norm}.bias"] = torch.zeros_like(common)
                parts[f"{path}.bias"] = biases.flatten()
    for path in (layout.attention_out, layout.outer):
        weights = _stacked(layers, f"{path}.weight")  # (layers, hidden, features)
        parts[f"{path}.weight"] = weights.transpose(0, 1).flatten(1, 2)
        if layers[0].get_submodule(path).bias is not None:
            parts[f"{path}.bias"] = _stacked(layers, f"{path}.bias").sum(dim=0)
    groups = parts[f"{layout.keys[0]}.weight"].shape[0] // head_dim
    return Wide(layout, parts, groups, parts[f"{layout.outer}.weight"].shape[1])


def _stacked(layers: Sequence[nn.Module], name: str) -> Tensor:
    return torch.stack([layer.get_parameter(name).double() for layer in layers])


@torch.no_grad()
def write(layer: nn.Module, parts: dict[str, Tensor]) -> None:
    """Put weights into a layer, in its own dtype."""
    for name, parameter in layer.named_parameters():
        parameter.copy_(parts[name])


def strongest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` largest scores, ascending; the first of equals."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def head_scores(scores: Tensor, groups: int) -> Tensor:
    """Return the score of each key-value head with its query heads, from those of their channels: the sum of squares.

    Args:
        scores: of each channel that the last projection of attention reads, (query heads x head size,).
        groups: key-value heads.
    """
    return scores.unflatten(0, (groups, -1)).square().sum(dim=1)
