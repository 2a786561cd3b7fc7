"""The compensation ``ghost``: the least squares by hand, against a slow solution, and beyond what ``linear`` can do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from elder.compensation import compensate
from elder.compensation.ghost import solve
from elder.compensation.linear import Moments
from elder.model.forward import block_losses
from elder.model.layers import find_layers
from tests.elder.compensation.removals import build, pruned


def test_the_ridge_by_hand() -> None:
    # one dimension: A = 4, B = 2, and a pull of 1 x mean diagonal 4 towards 0: (4 + 4) d = 2
    one = Moments(
        torch.tensor([[4.0]]).double(),
        torch.tensor([[2.0]]).double(),
        rest=3.0,
        target=2.0,
    )
    assert solve(one, 1.0).item() == pytest.approx(0.25)
    assert solve(one, 1e-9).item() == pytest.approx(0.5)
    # (d A d - 2 d B + rest) / target = (0.25 - 1 + 3) / 2
    assert one.error(torch.tensor([[0.25]]).double()) == pytest.approx(1.125)


@pytest.mark.parametrize(
    ("family", "path"),
    [("llama", "mlp.down_proj"), ("opt", "fc2"), ("gpt2", "mlp.c_proj")],
)
def test_a_slow_solution_is_the_same(family: str, path: str) -> None:
    blocks = torch.randint(1, 257, (80, 12), generator=torch.Generator().manual_seed(1))
    dense = build(family)
    job = pruned(dense, (2, 3), blocks, "ghost", ridge=0.5)
    projection = find_layers(job.model)[1].get_submodule(path)
    before = projection.weight.clone()
    # row by row over the tokens of all blocks but the last eighth
    read: list[torch.Tensor] = []
    hook = projection.register_forward_hook(lambda _, given, __: read.append(given[0]))
    states = job.model(input_ids=blocks[:70], output_hidden_states=True).hidden_states
    hook.remove()
    x, h = (
        read[0].double().reshape(70 * 12, -1),
        states[2].double().reshape(70 * 12, -1),
    )
    wanted = dense(input_ids=blocks[:70], output_hidden_states=True).hidden_states
    t = wanted[4].double().reshape(70 * 12, -1)
    if projection.bias is not None:
        x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    pull = (0.5 * x.square().sum() / x.shape[1]).sqrt() * torch.eye(x.shape[1])
    rows = torch.cat([x, pull.double()])
    goals = torch.cat([t - h, torch.zeros(x.shape[1], t.shape[1]).double()])
    expected = torch.linalg.lstsq(rows, goals, driver="gelsd").solution
    (gap,) = compensate("ghost", job)["gaps"]
    assert (gap["removed"], gap["into"], gap["folded"]) == ([2, 3], 1, True)
    change = (projection.weight - before).double()
    change = change if family == "gpt2" else change.T
    assert torch.allclose(change, expected[: len(change)], atol=1e-5)


def test_it_finds_what_no_map_of_the_output_can(
    llama: Callable, blocks: torch.Tensor
) -> None:
    records = {}
    for method in ("ghost", "linear"):
        dense = llama(3)
        first, second = find_layers(dense)[:2]
        for projection in (second.self_attn.o_proj, second.mlp.down_proj):
            projection.weight.data.zero_()  # the layer that goes does nothing
        job = pruned(dense, (1,), blocks, method, ridge=1e-9)
        # any change of the projection is all that is missing: 48 features, where the output has 32
        drawn = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
        find_layers(job.model)[0].mlp.down_proj.weight.data += drawn
        (records[method],) = compensate(method, job)["gaps"]
    assert records["ghost"]["held_out_error"]["before"] > 0.1
    assert records["ghost"]["held_out_error"]["after"] < 1e-8
    after = records["linear"]["held_out_error"]["after"]
    assert after > 0.01


def test_it_lowers_the_loss_on_text_that_it_has_not_seen(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    job = pruned(trained, (2, 3), text_blocks[:160], "ghost")
    unseen = text_blocks[-40:]
    before = block_losses(job.model, unseen, 20).mean().item()
    record = compensate("ghost", job)
    assert block_losses(job.model, unseen, 20).mean().item() < before
    assert record["held_out_loss"]["after"] < record["held_out_loss"]["before"]
