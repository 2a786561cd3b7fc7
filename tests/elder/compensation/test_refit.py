"""The compensation ``refit``: against a loop written out, its budget by hand, and what does not help."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from elder.compensation import compensate
from elder.compensation.states import LoneLayer, states_at
from elder.data import batch_indices
from elder.model.forward import block_losses
from elder.model.layers import find_layers
from elder.model.load import weights_digest
from tests.elder.compensation.removals import FAMILIES, build, pruned


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_layer_by_itself_does_what_it_does_in_the_model(
    family: str, blocks: torch.Tensor
) -> None:
    model = build(family)
    entering, leaving = states_at(model, 3, blocks)
    with LoneLayer(model, 3) as alone:
        assert torch.allclose(alone(entering), leaving, atol=1e-5)
    assert states_at(model, 4, blocks)[0].equal(leaving)


def test_a_loop_written_out_learns_the_same(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    blocks = text_blocks[:16]  # 14 to learn from
    job = pruned(trained, (2, 3), blocks, "refit", epochs=2, batch=4, lr=0.02)
    slow = copy.deepcopy(job.model)
    compensate("refit", job)
    states = slow(input_ids=blocks[:14], output_hidden_states=True).hidden_states[1]
    targets = trained(input_ids=blocks[:14], output_hidden_states=True).hidden_states[4]
    layer = find_layers(slow)[1].requires_grad_(True)
    rates = {w: 0.02 * w.square().mean().sqrt().item() for w in layer.parameters()}
    optimizer = torch.optim.AdamW(
        [{"params": [w], "lr": rate} for w, rate in rates.items()],
        betas=(0.9, 0.95),
        weight_decay=0,
    )
    positions = torch.arange(48)[None]
    for step in range(7):  # 2 x 14 / 4
        rows = batch_indices(14, 4, step, seed=0)
        rotary = slow.model.rotary_emb(states[rows], positions)
        out = layer(states[rows], position_embeddings=rotary)
        out = out[0] if isinstance(out, tuple) else out
        miss = (out - targets[rows]).square().sum(-1)
        loss = (miss / targets[rows].square().sum(-1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        for group, rate in zip(optimizer.param_groups, rates.values(), strict=True):
            # no step of warm-up but the first; from there down to 0 after the last
            group["lr"] = rate * min(step + 1, (7 - step) / 7)
        optimizer.step()
        optimizer.zero_grad()
    found = find_layers(job.model)[1].state_dict()
    for name, value in layer.state_dict().items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def test_the_budget_by_hand(trained: Any, text_blocks: torch.Tensor) -> None:
    # a layer of 32 x 32 twice, 16 x 32 twice, 48 x 32 three times and two norms of 32: 7744; the tied head: 257 x 32
    layer, head = 7744, 8224
    more = {"epochs": 2, "batch": 4, "least_squares": True}
    job = pruned(trained, (1, 3, 4), text_blocks[:16], "refit", **more)
    job.model.requires_grad_(True)  # as a model comes from its folder
    record = compensate("refit", job)
    tokens = 7 * 4 * 48  # steps, blocks, tokens: for each of layers 0 and 2
    share = layer / (3 * layer + head)
    assert record["share"] == pytest.approx(share)
    assert record["layer_tokens"] == 2 * tokens
    assert [gap["steps"] for gap in record["gaps"]] == [7, 7]
    assert job.spent.tokens_seen == 2 * math.ceil(share * tokens)
    assert (job.spent.optimizer_steps, job.spent.trainable_parameters) == (14, layer)
    # layers passed, of the shallower and of the dense model: 1 and 2 for layer 0, 2 and 5 for layer 2
    # and each layer once more by itself, for least squares: sums of 48 x 48 and 48 x 32 products a token
    forward = 2 * layer * 16 * 48 * ((1 + 2) + (2 + 5) + 2)
    solving = 2 * (2 * 48 * (48 + 32)) * 16 * 48
    training = 6 * layer * 2 * tokens
    flops = {"training": training, "forward": forward, "solving": solving}
    assert record["flops"] == flops


def test_before_a_recovery_it_takes_a_part_of_that_ones_budget(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    # two layers, 0.2465 of a token's passage each: 0.25 x 8000 tokens are 21 steps of 4 x 48 for both
    job = pruned(trained, (1, 3, 4), text_blocks[:96], "refit", most=0.25)
    record = compensate("refit", replace(job, budget=8000))
    assert [gap["steps"] for gap in record["gaps"]] == [21, 21]
    # and never more than its passes
    free = pruned(trained, (1, 3, 4), text_blocks[:96], "refit", most=0.25, epochs=0.5)
    record = compensate("refit", replace(free, budget=8000))
    assert [gap["steps"] for gap in record["gaps"]] == [10, 10]  # 0.5 x 84 / 4


def test_it_lowers_the_loss_on_text_that_it_has_not_seen(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    job = pruned(trained, (0, 3), text_blocks[:96], "refit")
    unseen = text_blocks[-40:]
    before = block_losses(job.model, unseen, 20).mean().item()
    record = compensate("refit", job)
    assert [(gap["removed"], gap["into"]) for gap in record["gaps"]] == [
        ([0], 1),
        ([3], 2),
    ]
    assert all(gap["kept"] for gap in record["gaps"])
    assert block_losses(job.model, unseen, 20).mean().item() < before


def test_a_layer_that_learns_nothing_stays_as_it_was(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    job = pruned(trained, (3,), text_blocks[:16], "refit", epochs=1, lr=100.0)
    before = weights_digest(job.model)
    (gap,) = compensate("refit", job)["gaps"]
    assert not gap["kept"]
    assert weights_digest(job.model) == before
    assert job.spent.optimizer_steps == gap["steps"] > 0


def test_a_16_bit_model_stays_one(trained: Any, text_blocks: torch.Tensor) -> None:
    dense = copy.deepcopy(trained).to(torch.bfloat16)
    job = pruned(dense, (3,), text_blocks[:32], "refit")
    (gap,) = compensate("refit", job)["gaps"]
    assert gap["kept"]
    assert gap["held_out_error"]["after"] < gap["held_out_error"]["before"]
    assert {weight.dtype for weight in job.model.parameters()} == {torch.bfloat16}


def test_it_begins_from_least_squares_where_they_help(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    blocks = text_blocks[:32]  # 28 to learn from
    errors = {}
    for begins in (False, True):
        more = {"epochs": 0.01, "lr": 1e-9, "least_squares": begins}  # one idle step
        job = pruned(trained, (2, 3), blocks, "refit", **more)
        (gap,) = compensate("refit", job)["gaps"]
        errors[begins] = gap["held_out_error"]["after"]
    # solved by hand: what the last projection reads, against what is lacking
    model = pruned(trained, (2, 3), blocks, "refit").model
    layer = find_layers(model)[1]
    read: list[torch.Tensor] = []
    layer.mlp.down_proj.register_forward_pre_hook(
        lambda _, given: read.append(given[0])
    )
    _, here = states_at(model, 1, blocks)
    _, wanted = states_at(trained, 3, blocks)
    x, missing = (one[:28].double().flatten(0, 1) for one in (read[0], wanted - here))
    a = x.T @ x
    a += 0.1 * a.diagonal().mean() * torch.eye(len(a))
    found = here + read[0] @ torch.linalg.solve(a, x.T @ missing).float()
    errors_by_hand = (found - wanted).square().sum(-1) / wanted.square().sum(-1)
    assert errors[True] == pytest.approx(errors_by_hand[28:].mean().item(), rel=1e-3)
    assert errors[True] < 0.9 * errors[False]
