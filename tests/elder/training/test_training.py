"""Losses and schedules by hand, the training loop and its checkpoints, gradient checkpointing, automatic choices and
their budget.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from elder import params
from elder.data import batch_indices, nth_seed
from elder.errors import UserError
from elder.model.forward import block_losses, next_token_losses
from elder.model.load import weights_digest
from elder.record import Spent, plain
from elder.training.checkpoint import Schedule
from elder.training.data import training_data
from elder.training.loop import TrainingRun, rate, train
from elder.training.losses import divergences, residual_norm, state_mismatch
from elder.training.optim import Optimizer
from elder.training.search import Snapshot, hold_out, search
from elder.training.tune import LONGER_RUN, LR_GRID, Objective, lowered, tune
from tests.elder.families_others import FAMILIES

PLAN = Schedule(
    6, 4, "adamw", lr=1e-2, relative=False, warmup=0.0, weight_decay=0.1, seed=3
)
FLOAT = torch.float32
RUN = TrainingRun("test", 0, FLOAT)


def next_token(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda ids: next_token_losses(model, ids).mean()


def objective(model: Any, grids: Any = None) -> Objective:
    return Objective(lambda _: next_token(model), grids or {})


# --- losses ---


def test_distillation_is_the_divergence_from_the_teacher_by_hand() -> None:
    # logits may be shifted
    teacher = torch.log(torch.tensor([[0.75, 0.25], [0.5, 0.5]])) + 2.0
    student = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    # first position: 0.75 ln(0.75 / 0.5) + 0.25 ln(0.25 / 0.5) = 0.1308; second: 0
    expected = [0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0]
    found = divergences(student, teacher).tolist()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert divergences(teacher, teacher).tolist() == pytest.approx([0, 0], abs=1e-7)


@pytest.mark.parametrize(
    ("norm", "relative", "expected"),
    [  # changes (3, -4) on (0, 2) and (0, 0) on (1, 1): l1 7 and 0, l2 5 and 0; |h| is 2 and 2 in l1, 2 and 1.4 in l2
        ("l1", False, 3.5),
        ("l2", False, 2.5),
        ("l1", True, 1.75),
        ("l2", True, 1.25),
    ],
)
def test_residual_norm_by_hand(norm: str, relative: bool, expected: float) -> None:
    entering = torch.tensor([[[0.0, 2.0], [1.0, 1.0]]])
    leaving = torch.tensor([[[3.0, -2.0], [1.0, 1.0]]])
    assert residual_norm(entering, leaving, norm, relative).item() == pytest.approx(
        expected
    )


def test_state_mismatch_by_hand() -> None:
    wanted = torch.tensor([[[3.0, 4.0], [0.0, 100.0]]])
    found = torch.tensor([[[3.0, 3.0], [60.0, 100.0]]], dtype=torch.bfloat16)
    # 1 / 25 of the first token, 3600 / 10000 of the second: large tokens count no more than small ones
    assert state_mismatch(found, wanted).item() == pytest.approx((0.04 + 0.36) / 2)
    assert state_mismatch(wanted, wanted).item() == 0


# --- order and rate ---


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (7, 3), (4, 4), (3, 8)])
def test_every_block_is_seen_once_an_epoch(count: int, batch: int) -> None:
    seen = torch.cat(
        [batch_indices(count, batch, step, seed=5) for step in range(count)]
    ).tolist()
    epochs = [seen[start : start + count] for start in range(0, len(seen), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len(epochs) == batch


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert batch_indices(50, 8, 4, 1).tolist() == batch_indices(50, 8, 4, 1).tolist()
    assert batch_indices(50, 8, 4, 1).tolist() != batch_indices(50, 8, 4, 2).tolist()
    assert batch_indices(50, 50, 0, 1).tolist() != batch_indices(50, 50, 1, 1).tolist()


def test_the_seed_of_each_draw_is_one_that_torch_takes() -> None:
    assert nth_seed(7, 12) == 700_033  # 7 x 100 003 + 12
    largest = 2**63 - 1
    drawn = [nth_seed(largest, number) for number in range(3)]
    # (2^63 - 1) x 100 003 is as much as -100 003, where 2^63 is nothing
    assert drawn == [2**63 - 100_003, 2**63 - 100_002, 2**63 - 100_001]
    torch.manual_seed(drawn[0])


def test_the_learning_rate_by_hand() -> None:
    plan = Schedule(10, 1, "adamw", 1.0, False, 0.2, 0.0, 0)
    # two of ten steps warm up: 1/2, 1; the other eight go down by ninths
    expected = [1 / 2, 1] + [n / 9 for n in range(8, 0, -1)]
    assert [rate(step, plan) for step in range(10)] == pytest.approx(expected)
    assert rate(0, Schedule(1, 1, "adamw", 1.0, False, 0.03, 0.0, 0)) == 1


def test_a_relative_rate_is_a_share_of_each_weights_root_mean_square() -> None:
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 3.0], [-3.0, 3.0]]))
        model.bias.zero_()
    (adamw,) = Optimizer(model, "adamw", 0.01, relative=True, weight_decay=0.1).parts
    assert [group["peak"] for group in adamw.param_groups] == pytest.approx(
        [0.03, 0.01 * 1e-3]
    )
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]


def test_muon_moves_the_matrices_inside_the_layers_by_their_share(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(2)
    inside = {
        n
        for n, p in model.named_parameters()
        if n.startswith("model.layers.") and p.ndim == 2
    }
    before = {
        name: parameter.detach().clone() for name, parameter in model.named_parameters()
    }
    optimizer = Optimizer(model, "muon", 0.05, relative=True, weight_decay=0.0)
    next_token(model)(blocks).backward()
    optimizer.step(0.5)
    adamw, muon = optimizer.parts
    assert (len(muon.param_groups), len(adamw.param_groups)) == (
        len(inside),
        len(before) - len(inside),
    )
    assert all(parameter.grad is None for parameter in model.parameters())
    for name in inside:
        change = model.get_parameter(name).detach() - before[name]
        # half of the peak rate of 5 % of a weight's size; Muon's iteration makes an update orthogonal only roughly
        assert (
            change.square().mean() / before[name].square().mean()
        ).sqrt() == pytest.approx(0.025, rel=0.3)
        sizes = torch.linalg.svdvals(change)
        assert sizes[-1] > 0.1 * sizes[0]  # all directions move, and nearly alike


# --- the loop ---


def test_steps_and_tokens_are_counted_and_the_loss_falls(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(2)
    spent = train(model, blocks, next_token(model), PLAN, RUN)
    assert (spent.optimizer_steps, spent.tokens_seen) == (6, 6 * 4 * 12)
    assert spent.trainable_parameters == sum(p.numel() for p in model.parameters())
    assert [point.step for point in spent.curve] == list(range(6))
    assert spent.curve[-1].loss < spent.curve[0].loss
    assert [point.lr for point in spent.curve] == pytest.approx(
        [1e-2 * rate(step, PLAN) for step in range(6)]
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    # has dropout
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    )


def test_each_step_is_told_what_share_of_the_run_it_ends(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model, told = llama(2), []
    train(
        model,
        blocks,
        next_token(model),
        replace(PLAN, steps=4),
        replace(RUN, at_step=told.append),
    )
    assert told == [0.25, 0.5, 0.75, 1.0]


# --- gradient checkpointing ---


def test_a_layer_computed_twice_gives_the_same_bytes(blocks: torch.Tensor) -> None:
    results = []
    for wanted in (False, True):
        # has dropout: what it drops must be the same both times
        model, calls = (gpt2(), [])
        model.transformer.h[1].attn.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        settings = params.Training(
            epochs=2.0, batch=5, lr=1e-2, gradient_checkpointing=wanted
        )
        spent = tune(model, training_data(blocks), settings, objective(model), RUN)
        results.append((spent, weights_digest(model)))
        assert len(calls) == (8 if wanted else 4)  # four steps
        model.train()
        next_token(model)(blocks[:2]).backward()
        assert len(calls) == (9 if wanted else 5)  # switched off again
        assert not model.get_input_embeddings()._forward_hooks
    assert results[0] == results[1]


def test_a_family_without_gradient_checkpointing_is_refused(
    blocks: torch.Tensor,
) -> None:
    model = FAMILIES["gpt-1"].build()
    settings = params.Training(
        epochs=2.0, batch=5, lr=1e-3, gradient_checkpointing=True
    )
    with pytest.raises(
        UserError,
        match=r"OpenAIGPTLMHeadModel .*checkpointing\. Set gradient_checkpointing to false",
    ):
        tune(model, training_data(blocks), settings, objective(model), RUN)


# --- automatic choices ---


def test_an_eighth_is_held_out() -> None:
    fit, held = hold_out(torch.arange(16)[:, None])
    assert (len(fit), held.flatten().tolist()) == (14, [14, 15])
    assert len(hold_out(torch.zeros(2, 1))[1]) == 1


def test_the_lowest_finite_loss_wins() -> None:
    losses = {1.0: math.nan, 2.0: 3.0, 3.0: 2.5, 4.0: 2.5, 5.0: -math.inf}
    chosen, spent = search(
        "test",
        [{"lr": lr} for lr in losses],
        lambda v: (losses[v["lr"]], Spent(tokens_seen=10, optimizer_steps=1)),
    )
    assert chosen == {"lr": 3.0}
    assert (spent.tokens_seen, spent.optimizer_steps) == (50, 5)
    assert [trial.chosen for trial in spent.search] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert [trial.held_out_loss for trial in spent.search] == [
        None,
        3.0,
        2.5,
        2.5,
        None,
    ]
    with pytest.raises(
        UserError, match="no value tried gave a finite loss; set lr of test by hand"
    ):
        search("test", [{"lr": 1.0}], lambda _: (math.nan, Spent()))


def test_a_snapshot_brings_the_weights_back(llama: Callable, tmp_path: Path) -> None:
    model, path = llama(2), tmp_path / "start"
    before = weights_digest(model)
    start = Snapshot(model, path)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    assert weights_digest(model) != before
    start.restore(model)
    assert weights_digest(model) == before
    # what 16 bits hold exactly, as where a checkpoint was in bfloat16, takes no more
    assert torch.float32 in {kept.dtype for kept in load_file(path).values()}
    Snapshot(model.bfloat16().float(), path)
    assert {kept.dtype for kept in load_file(path).values()} == {torch.bfloat16}


@pytest.mark.parametrize("epochs", [2.0, 3.0, 4.5])
def test_tuning_keeps_to_its_budget_and_chooses_the_lowest(
    llama: Callable,
    blocks: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    epochs: float,
) -> None:
    starts, schedules, data = [], [], []
    real = train

    def spy(
        model: Any, given: torch.Tensor, loss: Any, plan: Schedule, *rest: Any
    ) -> Spent:
        starts.append(weights_digest(model))
        schedules.append(plan)
        data.append(given)
        return real(model, given, loss, plan, *rest)

    monkeypatch.setattr("elder.training.tune.train", spy)
    many = blocks.repeat(4, 1)  # 40 blocks
    model = llama(2)
    before = weights_digest(model)
    settings = params.Training(epochs=epochs, batch=4, lr="auto", optimizer="muon")
    spent = tune(
        model, training_data(many), settings, objective(model, {"lr": LR_GRID}), RUN
    )
    # four trials and the run start from the same weights
    assert starts == [before] * 5
    held = many[-5:]  # an eighth of 40
    assert all(torch.equal(given, many[:-5]) for given in data[:4])
    assert torch.equal(data[4], many)
    budget = epochs * many.numel()
    step = 4 * 12
    # each trial and the run round to whole steps
    assert abs(spent.tokens_seen - budget) <= 5 * step / 2
    assert (
        spent.tokens_seen
        == step * spent.optimizer_steps
        == step * sum(plan.steps for plan in schedules)
    )
    assert sum(trial.tokens for trial in spent.search) <= 0.2 * budget + 4 * step / 2
    losses = [trial.held_out_loss for trial in spent.search]
    best = plain(spent.search[losses.index(min(losses))])["lr"]
    assert (
        schedules[4].lr
        == best * (schedules[0].steps / schedules[4].steps) ** LONGER_RUN
        < best
    )
    assert [trial.chosen for trial in spent.search].index(True) == losses.index(
        min(losses)
    )
    again = llama(2)
    real(again, many[:-5], next_token(again), schedules[0], RUN)
    assert losses[0] == pytest.approx(block_losses(again, held, 4).mean().item())


def test_a_rate_that_was_found_is_lowered_for_a_longer_run_by_hand() -> None:
    # 100 ** -0.32 = exp(-0.32 x 4.6052)
    assert lowered(10, 1000) == pytest.approx(0.2291, abs=1e-4)
    assert lowered(10, 5) == 1.0  # never raised


def test_nothing_automatic_spends_all_on_one_run(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(2)
    settings = params.Training(epochs=2.0, batch=5, lr=1e-3)
    spent = tune(model, training_data(blocks), settings, objective(model), RUN)
    assert spent.search == []
    assert (spent.optimizer_steps, spent.tokens_seen) == (4, 2 * 120)
    assert spent.curve[0].lr == 1e-3


def test_a_run_that_diverges_ends_at_once(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(2)
    plan = replace(PLAN, lr=1e30)
    spent = train(model, blocks, next_token(model), plan, RUN)
    *before, last = [math.isfinite(point.loss) for point in spent.curve]
    assert all(before)
    assert not last
    assert spent.optimizer_steps == len(spent.curve) < plan.steps


def test_a_run_that_diverges_says_so(llama: Callable, blocks: torch.Tensor) -> None:
    model = llama(2)
    settings = params.Training(epochs=2.0, batch=5, lr=1e30)
    with pytest.raises(
        UserError,
        match=r"test diverged with a learning rate of 1e\+30: set test.lr lower",
    ):
        tune(model, training_data(blocks), settings, objective(model), RUN)
