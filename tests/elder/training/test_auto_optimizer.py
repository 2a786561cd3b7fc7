"""The optimiser that is chosen on held-out blocks: the better one wins, within the budget, and the record says so."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from elder import params
from elder.model.forward import next_token_losses
from elder.model.layers import remove_layers
from elder.model.load import load_model, weights_digest
from elder.record import Spent, plain
from elder.recovery import recover, student_of
from elder.training import tune as tuning
from elder.training.data import training_data
from elder.training.loop import TrainingRun
from elder.training.optim import (
    OPTIMIZERS,
    Optimizer,
    evenness,
    layer_matrices,
    optimizers_for,
    spectral_norm,
)
from elder.training.ready import trainable
from elder.training.search import Values, downhill
from elder.training.tune import (
    ADAPTER_LR_GRID,
    LR_GRID_OF_NAMED,
    Objective,
    grids_of,
    lowered,
)

RUN = TrainingRun("test", 0, torch.float32)
AUTO = params.Training(epochs=10.0, batch=4)  # all that can be is auto


HIGH = (0.005, 0.006, 0.008, 0.01)


def unlearning(model: Any, loser: str, rates: tuple[float, ...] = HIGH) -> Objective:
    """Return next-token training that drives a model from its text with one of the optimisers."""

    def loss_with(values: Values) -> Any:
        sign = -1 if values["optimizer"] == loser else 1
        return lambda ids: sign * next_token_losses(model, ids).mean()

    return Objective(loss_with, grids_of(AUTO) | {"lr": rates})


def auto(llama: Callable, blocks: torch.Tensor, loser: str) -> tuple[Spent, Any]:
    model = llama(2)
    data = training_data(blocks.repeat(4, 1))  # 40 blocks
    return tuning.tune(model, data, AUTO, unlearning(model, loser), RUN), model


@pytest.mark.parametrize(("loser", "winner"), [("adamw", "muon"), ("muon", "adamw")])
def test_the_better_optimiser_wins_within_the_budget(
    llama: Callable, blocks: torch.Tensor, loser: str, winner: str
) -> None:
    spent, model = auto(llama, blocks, loser)
    trials = [plain(trial) for trial in spent.search]
    # rates with AdamW, from the middle to where less is lost, then Muon at the best of them
    losses = [trial["held_out_loss"] for trial in trials]
    rates = [0.006, 0.008, 0.01 if winner == "adamw" else 0.005]
    best = rates[losses.index(min(losses[:-1]))]
    assert [(trial["optimizer"], trial["lr"]) for trial in trials] == [
        *(("adamw", lr) for lr in rates),
        ("muon", best),
    ]
    (chosen,) = [trial for trial in trials if trial["chosen"]]
    assert (chosen["optimizer"], chosen["lr"]) == (winner, best)
    assert chosen["held_out_loss"] == min(losses)
    # Muon's rate is lower in the longer run, AdamW's is not
    peak = best if winner == "adamw" else best * lowered(4, 84)
    assert max(point.lr for point in spent.curve) == pytest.approx(peak)
    # ten passes over 40 blocks of 12 tokens are 100 steps of four: trials of 4, the losers' counted, and the rest
    assert [trial["tokens"] for trial in trials] == [4 * 4 * 12] * 4
    assert spent.optimizer_steps == 4 * 4 + 84
    assert spent.tokens_seen == 10 * 40 * 12
    again, same = auto(llama, blocks, loser)
    assert again == spent
    assert weights_digest(same) == weights_digest(model)


def test_muon_is_not_tried_on_what_adam_trained(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(2)
    assert grids_of(AUTO, model)["optimizer"] == OPTIMIZERS
    for weight in layer_matrices(model):  # a few large singular values, as Adam leaves
        with torch.no_grad():
            weight.add_(0.1 * torch.ones_like(weight))
    assert grids_of(AUTO, model)["optimizer"] == ("adamw",)
    settings = params.Recover(epochs=10.0, batch=4, mode="train")
    data = training_data(blocks.repeat(4, 1))  # 40 blocks
    spent = recover(student_of(settings, model, None), data, settings, RUN)
    assert {plain(one)["optimizer"] for one in spent.search} == {"adamw"}
    # four rates share what five trials do where Muon is one
    assert {one.tokens for one in spent.search} == {5 * 4 * 12}
    # the run has what trials that were not needed would have taken
    assert spent.optimizer_steps == 10 * 40 / 4
    # adapters suit either
    adapters = settings.model_copy(update={"adapter_rank": 2})
    assert grids_of(adapters, model)["optimizer"] == OPTIMIZERS


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48)])
def test_evenness_is_1_for_random_matrices_and_small_for_those_of_one_rank(
    llama: Callable, shape: tuple[int, int]
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    exact = torch.linalg.matrix_norm(matrix, 2).item()
    assert 0.9 * exact < spectral_norm(matrix) <= exact * 1.0001
    spiky = matrix + 2
    exact = torch.linalg.matrix_norm(spiky, 2).item()
    assert spectral_norm(spiky) == pytest.approx(exact, rel=1e-4)
    assert spectral_norm(torch.zeros(shape)) == 0

    model = llama(2)
    for weight in layer_matrices(model):
        weight.data = matrix.clone()
    assert evenness(model) == pytest.approx(1, abs=0.2)
    for weight in layer_matrices(model):
        weight.data = torch.ones(shape)  # stable rank 1
    random = shape[0] * shape[1] / (shape[0] ** 0.5 + shape[1] ** 0.5) ** 2
    assert evenness(model) == pytest.approx(1 / random, rel=1e-3)
    for weight in layer_matrices(model):
        weight.data = torch.zeros(shape)
    assert evenness(model) == 0


@pytest.mark.parametrize("name", ["novels-llama", "novels-neox", "novels-opt"])
def test_muon_suits_the_bundled_models_which_it_trained(name: str) -> None:
    model = load_model(params.Model(name=f"models/{name}")).model
    assert optimizers_for(model) == OPTIMIZERS


@pytest.mark.parametrize(
    ("losses", "tried"),
    [
        ([4.0, 3.0, 2.0, 1.0], [1, 2, 3]),
        ([4.0, 3.0, 2.0, 2.5], [1, 2, 3]),
        ([4.0, 3.0, 3.0, 1.0], [1, 2, 0]),
        ([1.0, 2.0, 3.0, 4.0], [1, 2, 0]),
        ([1.0, math.inf, math.inf, math.inf], [1, 2, 0]),
        ([3.0, 1.0, 2.0], [1, 2, 0]),
        ([3.0, 2.0, 1.0], [1, 2]),
        ([1.0, 2.0], [0, 1]),
        ([1.0], [0]),
    ],
)
def test_rates_are_tried_from_the_middle_to_where_less_is_lost(
    losses: list[float], tried: list[int]
) -> None:
    seen: dict[int, float] = {}
    while (index := downhill(seen, len(losses))) is not None:
        seen[index] = losses[index]
    assert list(seen) == tried


def test_an_interrupted_run_ends_with_the_same_weights(
    llama: Callable,
    blocks: torch.Tensor,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, model = auto(llama, blocks, "muon")
    monkeypatch.setattr("elder.training.checkpoint.CHECKPOINT_EVERY", -1.0)
    run = TrainingRun("test", 0, torch.float32, tmp_path / "checkpoint")
    data = training_data(blocks.repeat(4, 1))
    steps = 0
    real = Optimizer.step

    def killed(optimizer: Optimizer, factor: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 50:  # 30 steps after the trials
            raise KeyboardInterrupt
        real(optimizer, factor)

    other = llama(2)
    with monkeypatch.context() as patch:
        patch.setattr(Optimizer, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            tuning.tune(other, data, AUTO, unlearning(other, "muon"), run)
    assert run.checkpoint is not None
    assert run.checkpoint.exists()
    other = llama(2)
    resumed = tuning.tune(other, data, AUTO, unlearning(other, "muon"), run)
    assert resumed == whole
    assert weights_digest(other) == weights_digest(model)


def test_a_rate_that_was_given_is_for_adamw_and_nothing_is_tried() -> None:
    assert grids_of(params.Training(lr=1e-3)) == {}
    only = grids_of(params.Training(optimizer="muon"))
    assert only == {"lr": LR_GRID_OF_NAMED}
    steps = params.Training(epochs=1.0, lr=1e-3)
    made = tuning.Tuning(None, None, steps, Objective(lambda _: None), RUN)  # type: ignore[arg-type, return-value]
    assert made.schedule({}, 1.0, 8).optimizer == "adamw"


def test_adapters_are_tried_with_either_optimiser(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    pytest.importorskip("peft")
    remove_layers(trained, [3])
    with trainable(trained, 2, 0) as adapted:
        parts = Optimizer(adapted, "muon", 1e-3, False, 0.0).parts
        assert [type(part) for part in parts] == [torch.optim.Muon]
    settings = params.Recover(epochs=4.0, batch=4, adapter_rank=2, mode="train")
    data = training_data(text_blocks[:40])
    spent = recover(student_of(settings, trained, None), data, settings, RUN)
    tried = [(plain(trial)["optimizer"], plain(trial)["lr"]) for trial in spent.search]
    assert [lr for _, lr in tried[:2]] == list(ADAPTER_LR_GRID[1:])
    names = [name for name, _ in tried]
    assert names in (["adamw"] * 2 + ["muon"], ["adamw"] * 3 + ["muon"])
