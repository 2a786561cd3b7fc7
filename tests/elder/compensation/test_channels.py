"""Several layers as one: heads and channels that are moved do what they did, and the cuts against slow versions."""

from typing import Any

import pytest
import torch
from torch import nn

from elder.compensation import COMPENSATIONS, compensate
from elder.compensation.channels import (
    find_layout,
    head_scores,
    side_by_side,
    strongest,
    write,
)
from elder.compensation.flatten import nystroem
from elder.compensation.states import LoneLayer, states_at
from elder.errors import UserError
from elder.model.layers import find_layers
from elder.model.load import weights_digest
from tests.elder.compensation.removals import FAMILIES, build, pruned

METHODS = ["concatenate", "flatten"]
ONE_LAYOUT = ["llama", "opt"]


def with_norms(family: str) -> Any:
    """Make a tiny model whose norms have gains and biases, and whose biases are not 0."""
    model = build(family)
    generator = torch.Generator().manual_seed(2)
    for name, weight in find_layers(model).named_parameters():
        if weight.ndim == 1:
            drawn = torch.randn(weight.shape, generator=generator)
            weight.data = drawn if "norm" in name else drawn * 0.1
        if name.endswith("fc1.bias"):
            weight.data += 9  # else a channel may be 0 for all tokens
    return model


def test_the_choices_by_hand() -> None:
    assert strongest(torch.tensor([1.0, 3, 2, 3]), 2).tolist() == [1, 3]
    # two key-value heads with two channels of queries each: 1 + 4, 9 + 0
    assert head_scores(torch.tensor([1.0, 2, 3, 0]), 2).tolist() == [5, 9]
    # the second channel is always twice the first: it alone can say both, 3 x + 1 (2 x) = 2.5 (2 x)
    moments = torch.tensor([[1.0, 2], [2, 4]]).double()
    chosen, cut = nystroem(moments, torch.tensor([[3.0, 1]]).double(), 1, 1e-12)
    assert chosen.tolist() == [1]
    assert cut.tolist() == [[pytest.approx(2.5)]]


@pytest.mark.parametrize("family", ONE_LAYOUT)
@pytest.mark.parametrize("one", [0, 1])
def test_the_heads_and_channels_of_one_layer_are_that_layer(
    family: str, one: int, blocks: torch.Tensor
) -> None:
    model = with_norms(family)
    layers = find_layers(model)
    members = [layers[2], layers[3]]
    layout = find_layout(members[0])
    assert layout
    for path in (layout.attention_out, layout.outer):  # which would add up
        bias = members[1 - one].get_submodule(path).bias
        if bias is not None:
            bias.data.zero_()
    entering, _ = states_at(model, 2, blocks)
    with LoneLayer(model, 2 + one) as alone:
        expected = alone(entering)
    wide = side_by_side(members, layout, head_dim=8)
    heads = torch.arange(wide.groups // 2) + one * wide.groups // 2
    channels = torch.arange(48) + one * 48
    write(layers[1], wide.narrow(heads, channels))
    with LoneLayer(model, 1) as alone:
        assert torch.allclose(alone(entering), expected, atol=1e-4)


@pytest.mark.parametrize("family", ONE_LAYOUT)
@pytest.mark.parametrize("method", METHODS)
def test_what_fits_into_one_layer_is_all_there(
    family: str, method: str, blocks: torch.Tensor
) -> None:
    dense = with_norms(family)
    layers = find_layers(dense)
    layout = find_layout(layers[2])
    assert layout
    # of layer 2 every other head and channel does something, of layer 3 the others
    for place, layer in enumerate((layers[2], layers[3])):
        columns = layer.get_submodule(layout.attention_out).weight.data
        columns.unflatten(1, (-1, 8))[:, place::2] = 0
        for parameter in layer.get_submodule(layout.inner[-1]).parameters():
            parameter.data[place::2] = 0
    job = pruned(dense, (3,), blocks, method, **ridge_of(method))
    (gap,) = compensate(method, job)["gaps"]
    assert (gap["removed"], gap["into"]) == ([3], 2)
    assert (gap["heads"], gap["channels"]) == ([2, 2], [24, 24])
    entering, _ = states_at(dense, 2, blocks)
    _, found = states_at(job.model, 2, blocks)
    assert torch.allclose(found, side_by_side_slowly(dense, entering), atol=1e-3)


def ridge_of(method: str) -> dict[str, float]:
    return {"ridge": 1e-9} if method == "flatten" else {}


def side_by_side_slowly(dense: Any, entering: torch.Tensor) -> torch.Tensor:
    """Run layers 2 and 3 of a model side by side: attention of both on what enters, then both MLPs on the sum."""
    layers = find_layers(dense)
    states = entering
    for half in ("attention", "mlp"):
        added = torch.zeros_like(states)
        for index in (2, 3):
            layout = find_layout(layers[index])
            assert layout
            attention, outer = (
                layers[index].get_submodule(path)
                for path in (layout.attention_out, layout.outer)
            )
            silent = outer if half == "attention" else attention
            hook = silent.register_forward_hook(lambda _, __, put_out: 0 * put_out)
            with LoneLayer(dense, index) as alone:
                added += alone(states) - states
            hook.remove()
        states = states + added
    return states


@pytest.mark.parametrize("family", ONE_LAYOUT)
def test_concatenation_keeps_the_most_sensitive(
    family: str, blocks: torch.Tensor
) -> None:
    dense = with_norms(family)
    job = pruned(dense, (3, 4), blocks, "concatenate")
    scores = []  # (score, layer, channel), one by one
    for index in (2, 3, 4):
        layer = find_layers(dense)[index]
        layout = find_layout(layer)
        assert layout
        outer = layer.get_submodule(layout.outer)
        read: list[torch.Tensor] = []
        hook = outer.register_forward_hook(
            lambda _, given, __, read=read: read.append(given[0])
        )
        dense(input_ids=blocks)
        hook.remove()
        values = read[0].reshape(-1, 48)
        for channel in range(48):
            score = values[:, channel].norm() * outer.weight[:, channel].norm()
            scores.append((score.item(), index, channel))
    best = sorted(sorted(scores, reverse=True)[:48], key=lambda found: found[1:])
    (gap,) = compensate("concatenate", job)["gaps"]
    expected = [sum(index == one for _, index, _ in best) for one in (2, 3, 4)]
    assert gap["channels"] == expected
    assert sum(gap["heads"]) == 4
    columns = [
        find_layers(dense)[index].get_submodule(layout.outer).weight[:, channel]
        for _, index, channel in best
    ]
    merged = find_layers(job.model)[2].get_submodule(layout.outer).weight
    assert torch.allclose(merged, torch.stack(columns, dim=1))


@pytest.mark.parametrize("method", [*METHODS, "halves"])
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {*ONE_LAYOUT}))
def test_other_layouts_are_refused(
    method: str, family: str, blocks: torch.Tensor
) -> None:
    job = pruned(build(family), (3,), blocks, method)
    if family == "granite":  # as LLaMA, with factors of its own
        compensate(method, job)
        return
    before = weights_digest(job.model)
    with pytest.raises(
        UserError, match="by heads and channels of several layers: layers 2, 3"
    ):
        compensate(method, job)
    check = COMPENSATIONS[method].check
    assert check
    with pytest.raises(UserError, match="its layers are not alike"):
        check(job.dense, blocks[:1])
    assert weights_digest(job.model) == before


def test_a_norm_of_another_kind_has_no_layout() -> None:
    layer = find_layers(build("llama"))[0]
    assert find_layout(layer)

    class OnePlus(nn.Module):
        """A norm whose gain is 1 + its weight, as Gemma's."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((32,), 0.5))

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return nn.functional.rms_norm(states, (32,)) * (1 + self.weight)

    layer.input_layernorm = OnePlus()
    assert find_layout(layer) is None
