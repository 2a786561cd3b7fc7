"""The compensation ``halves``: what a layer of two halves computes, and the choice against a slow version."""

import copy
from typing import Any

import pytest
import torch

from elder.compensation import compensate
from elder.compensation.base import Group
from elder.compensation.channels import find_layout
from elder.compensation.halves import pairs_of, put_together
from elder.compensation.states import LoneLayer
from elder.model.forward import block_losses
from elder.model.layers import find_layers
from tests.elder.compensation.removals import build, pruned

ONE_LAYOUT = ["llama", "opt"]


def test_the_pairs_by_hand() -> None:
    group = Group(kept=2, place=2, members=(2, 3, 4))
    assert pairs_of(group) == [(2, 2), (2, 3), (3, 2), (2, 4), (4, 2)]


@pytest.mark.parametrize("family", ONE_LAYOUT)
def test_a_layer_of_two_halves_does_what_both_do(
    family: str, blocks: torch.Tensor
) -> None:
    model = build(family)
    layers = find_layers(model)
    layout = find_layout(layers[2])
    assert layout

    def silenced(index: int, path: str, states: torch.Tensor) -> torch.Tensor:
        """Run a layer without what one of its halves puts out."""
        out = layers[index].get_submodule(path)
        hook = out.register_forward_hook(lambda _, __, put_out: 0 * put_out)
        with LoneLayer(model, index) as alone:
            states = alone(states)
        hook.remove()
        return states

    entering = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    between = silenced(2, layout.outer, entering)
    expected = silenced(3, layout.attention_out, between)
    put_together(layers[1], layers, (2, 3), layout)
    with LoneLayer(model, 1) as alone:
        assert torch.allclose(alone(entering), expected, atol=1e-5)


def slowly(dense: Any, model: Any, blocks: torch.Tensor) -> tuple[float, int, int]:
    """Return the lowest loss of the pairs for layer 2, which stands for 3 and 4, and whose halves have it."""
    found = []
    for attention, mlp in [(2, 2), (2, 3), (3, 2), (2, 4), (4, 2)]:
        tried = copy.deepcopy(model)
        its, dense_layers = find_layers(tried)[2], find_layers(dense)
        its.self_attn = copy.deepcopy(dense_layers[attention].self_attn)
        its.self_attn.layer_idx = 2
        its.input_layernorm = dense_layers[attention].input_layernorm
        its.mlp = dense_layers[mlp].mlp
        its.post_attention_layernorm = dense_layers[mlp].post_attention_layernorm
        losses = [tried(ids[None], labels=ids[None]).loss.item() for ids in blocks]
        found.append((sum(losses) / len(losses), attention, mlp))
    return min(found)


def test_the_pair_that_costs_the_least_stays(blocks: torch.Tensor) -> None:
    dense = build("llama")
    for weight in find_layers(dense)[2].parameters():
        weight.mul_(20)
    job = pruned(dense, (3, 4), blocks, "halves", samples=4)
    loss, attention, mlp = slowly(job.dense, job.model, blocks[:4])
    assert (attention, mlp) != (2, 2)  # the layer as it was
    record = compensate("halves", job)
    gap = {"removed": [3, 4], "into": 2, "attention": attention, "mlp": mlp}
    assert record["gaps"] == [gap | {"tried": 5}]
    assert record["tokens"] == 5 * blocks[:4].numel()
    after = block_losses(job.model, blocks[:4], 4).mean().item()
    assert after == pytest.approx(loss, abs=1e-4)
