"""The compensation ``linear``: the ridge by hand, a map planted and found, and where it goes in."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from elder.compensation import Pruned, compensate
from elder.compensation import linear as linear_module
from elder.compensation.linear import LinearSettings, Moments, find_site, solve
from elder.errors import UserError
from elder.model.forward import block_losses, logits_of
from elder.model.layers import find_layers, remove_layers
from elder.model.load import weights_digest
from tests.elder.compensation.removals import build, pruned


def test_the_ridge_by_hand() -> None:
    # one dimension: A = 4, B = 2, and a pull of 1 x mean diagonal 4: (4 + 4) t = 2 + 4
    one = Moments(
        torch.tensor([[4.0]]).double(),
        torch.tensor([[2.0]]).double(),
        rest=3.0,
        target=2.0,
    )
    assert solve(one, 1.0).item() == pytest.approx(0.75)
    assert solve(one, 1e-9).item() == pytest.approx(0.5)
    # (t A t - 2 t B + rest) / target = (2.25 - 3 + 3) / 2
    assert one.error(torch.tensor([[0.75]]).double()) == pytest.approx(1.125)


def test_a_planted_map_is_found(llama: Callable, blocks: torch.Tensor) -> None:
    plain, dense = llama(3), llama(3)
    first, second = find_layers(dense)[:2]
    planted = torch.eye(32) + 0.5 * torch.randn(
        32, 32, generator=torch.Generator().manual_seed(0)
    )
    # y T in place of y
    first.mlp.down_proj.weight.data = planted.T @ first.mlp.down_proj.weight.data
    for projection in (second.self_attn.o_proj, second.mlp.down_proj):
        projection.weight.data.zero_()  # the layer that goes does nothing, so T is all that is missing
    remove_layers(plain, (1,))
    settings = LinearSettings(ridge=1e-9)
    job = Pruned(plain, dense, (1,), blocks, settings, batch=8)
    record = compensate("linear", job)
    assert record["gaps"][0]["folded"]
    assert record["gaps"][0]["held_out_error"]["before"] > 0.1
    assert record["gaps"][0]["held_out_error"]["after"] < 1e-8
    assert torch.allclose(
        find_layers(plain)[0].mlp.down_proj.weight,
        first.mlp.down_proj.weight,
        atol=1e-3,
    )
    assert torch.allclose(logits_of(plain, blocks), logits_of(dense, blocks), atol=1e-2)


def test_it_brings_the_states_and_the_loss_nearer(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    fit, unseen = text_blocks[:160], text_blocks[-60:]
    job = pruned(trained, (2, 3), fit, "linear")
    plain = copy.deepcopy(job.model)
    record = compensate("linear", job)

    def error(model: Any, ids: torch.Tensor) -> float:
        """Return the distance of the state entering layer 2 from the dense one entering layer 4."""
        found, wanted = (
            m(input_ids=ids, output_hidden_states=True).hidden_states
            for m in (model, trained)
        )
        return ((found[2] - wanted[4]).square().sum() / wanted[4].square().sum()).item()

    (gap,) = record["gaps"]
    assert (gap["removed"], gap["into"], gap["folded"]) == ([2, 3], 1, True)
    held = fit[-20:]  # the last eighth
    expected = {"before": error(plain, held), "after": error(job.model, held)}
    assert gap["held_out_error"] == pytest.approx(expected, rel=1e-3)
    assert error(job.model, unseen) < 0.9 * error(plain, unseen)
    before, after = (
        block_losses(model, unseen, 20).mean().item() for model in (plain, job.model)
    )
    assert after < before
    assert record["held_out_loss"]["after"] < record["held_out_loss"]["before"]


def test_a_map_that_does_not_help_is_left_out(
    llama: Callable, blocks: torch.Tensor
) -> None:
    # random layers, and few tokens: learnt by heart
    job = pruned(llama(4), (1, 2), blocks, "linear", ridge=1e-6)
    before = weights_digest(job.model)
    (gap,) = compensate("linear", job)["gaps"]
    assert gap["held_out_error"]["after"] > gap["held_out_error"]["before"]
    assert not gap["folded"]
    assert weights_digest(job.model) == before


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 2), nn.Linear(3, 2, bias=False), Conv1D(2, 3)]
)
def test_folding_maps_what_a_projection_puts_out(module: Any) -> None:
    x, matrix = torch.randn(5, 3), torch.tensor([[1.0, 2.0], [0.0, -1.0]]).double()
    expected = module(x) @ matrix.float()
    linear_module.fold(module, matrix)
    assert torch.allclose(module(x), expected, atol=1e-6)


SITES = {
    "llama": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "opt": "fc2",
    "phi": "mlp.fc2",
    "gpt-neox": "mlp.dense_4h_to_h",
    "falcon": "mlp.dense_4h_to_h",
    "bloom": "mlp.dense_4h_to_h",
    "deepseek-v3": "mlp.shared_experts.down_proj",
}


@pytest.mark.parametrize("family", SITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_projection_that_a_layer_ends_with(
    family: str, dtype: torch.dtype, blocks: torch.Tensor
) -> None:
    model = build(family).to(dtype)
    site = find_site(model, 3, blocks[:1])
    assert site.module is find_layers(model)[3].get_submodule(SITES[family])
    assert site.gain == pytest.approx(1, abs=0.01)


def test_a_residual_multiplier_is_the_gain(blocks: torch.Tensor) -> None:
    model = build("granite")
    assert find_site(model, 1, blocks[:1]).gain == pytest.approx(
        model.config.residual_multiplier, rel=1e-4
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_experts_take_no_linear_map(family: str, blocks: torch.Tensor) -> None:
    with pytest.raises(
        UserError,
        match="its layer 1 does not end with one projection",
    ):
        compensate("linear", pruned(build(family), (2, 3), blocks, "linear"))
