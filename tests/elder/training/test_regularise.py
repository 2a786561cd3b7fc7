"""Stage 2: the selected layers shrink as published, or fade out while the others learn."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from elder import params
from elder.data import batch_indices
from elder.model.forward import block_losses, logits_of, next_token_losses
from elder.model.layers import LayerControl, find_layers, skipping
from elder.model.load import weights_digest
from elder.record import plain
from elder.training import checkpoint
from elder.training.data import training_data
from elder.training.loop import TrainingRun
from elder.training.losses import residual_norm
from elder.training.optim import optimizers_for
from elder.training.regularise import LAMBDA2_GRID, regularise, residual_weight
from elder.training.tune import LR_GRID

FLOAT = torch.float32
RUN = TrainingRun("regularise", 0, FLOAT)


@torch.no_grad()
def norms(model: Any, ids: torch.Tensor, settings: params.Regularise) -> list[float]:
    found: list[float] = []
    with LayerControl(find_layers(model)) as control:
        control.observe = lambda _, h, f: found.append(
            residual_norm(h, f, settings.norm, settings.relative).item()
        )
        logits_of(model, ids)
    return found


@pytest.mark.parametrize(
    ("norm", "relative", "lambda2"),
    [("l2", False, 1.0), ("l1", False, 0.1), ("l2", True, 5.0)],
)
def test_regularisation_shrinks_the_selected_layers(
    trained: Any, text_blocks: torch.Tensor, norm: Any, relative: bool, lambda2: float
) -> None:
    ids = text_blocks[:32]
    settings = params.Regularise(
        epochs=4.0, batch=4, lr=2e-3, lambda2=lambda2, norm=norm, relative=relative
    )
    before = norms(trained, ids, settings)
    with skipping(trained, [2, 3]):
        without = block_losses(trained, ids, 8).mean()
    spent = regularise(trained, [3, 2], training_data(ids), settings, RUN)
    after = norms(trained, ids, settings)
    assert all(after[index] < 0.5 * before[index] for index in (2, 3))
    assert all(after[index] > 0.5 * before[index] for index in (0, 1, 4, 5))
    with skipping(trained, [2, 3]):
        assert block_losses(trained, ids, 8).mean() < without
    assert (spent.optimizer_steps, spent.tokens_seen) == (32, 32 * 4 * 48)
    assert not any("forward" in vars(layer) for layer in find_layers(trained))


def test_the_regularised_loss_by_hand(llama: Callable, blocks: torch.Tensor) -> None:
    model = llama(3)
    settings = params.Regularise(epochs=0.1, batch=4, lr=1e-9, lambda2=0.3)
    spent = regularise(
        model, [2, 0], training_data(blocks), settings, replace(RUN, seed=7)
    )
    ids = blocks[batch_indices(10, 4, 0, 7)]
    terms = norms(model, ids, settings)
    expected = block_losses(model, ids, 4).mean().item() + 0.3 * (terms[0] + terms[2])
    assert [point.loss for point in spent.curve] == pytest.approx([expected], rel=1e-5)


def test_layers_one_by_one_by_hand(trained: Any, text_blocks: torch.Tensor) -> None:
    ids = text_blocks[:8]
    settings = params.Regularise(
        epochs=2.0, batch=4, lr=1e-9, lambda2=0.3, one_by_one=True
    )
    spent = regularise(trained, [4, 1], training_data(ids), settings, RUN)
    expected = []
    # four steps: layer 4 has the first two, layer 1 the others, without layer 4
    for step, (shrinking, gone) in enumerate([(4, []), (4, []), (1, [4]), (1, [4])]):
        rows = ids[batch_indices(8, 4, step, 0)]
        with skipping(trained, gone):
            loss = block_losses(trained, rows, 4).mean().item()
            expected.append(loss + 0.3 * norms(trained, rows, settings)[shrinking])
    assert [point.loss for point in spent.curve] == pytest.approx(expected, rel=1e-4)


def test_regularisation_searches_both_values(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    ids, suitable = text_blocks[:16], optimizers_for(trained)
    spent = regularise(
        trained, [2], training_data(ids), params.Regularise(epochs=3.0, batch=4), RUN
    )
    tried = [plain(trial) for trial in spent.search]
    values = [(one["optimizer"], one["lr"], one["lambda2"]) for one in tried]
    grid = [("adamw", lr, lambda2) for lr in LR_GRID for lambda2 in LAMBDA2_GRID]
    assert values[:12] == grid
    best = min(tried[:12], key=lambda one: one["held_out_loss"])
    muon = [("muon", best["lr"], best["lambda2"])]
    assert values[12:] == (muon if "muon" in suitable else [])
    assert len({trial.held_out_loss for trial in spent.search}) == len(tried)
    assert not any("forward" in vars(layer) for layer in find_layers(trained))


# --- layers that fade out ---


def test_the_residual_weight_by_hand() -> None:
    # five steps, over 60 % of them: 3 steps that take off a third each
    assert [residual_weight(step / 5, 0.6) for step in range(1, 6)] == pytest.approx(
        [2 / 3, 1 / 3, 0, 0, 0]
    )
    assert residual_weight(0.0, 0.6) == 1
    assert residual_weight(1.0, 1.0) == 0  # the last step never sees the layers


def test_what_the_layers_add_fades_and_is_gone_at_the_end(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(3)
    settings = params.Regularise(epochs=2.0, batch=4, lr=1e-12, lambda2=0.3, anneal=0.6)
    spent = regularise(
        model, [2, 0], training_data(blocks), settings, replace(RUN, seed=7)
    )
    batches = [blocks[batch_indices(10, 4, step, 7)] for step in range(5)]
    expected = []
    for ids, weight in zip(batches, [2 / 3, 1 / 3, 0, 0, 0], strict=True):
        with LayerControl(find_layers(model)) as control:
            control.weights = torch.tensor([weight, 1.0, weight])
            terms = norms(model, ids, settings)
            expected.append(
                block_losses(model, ids, 4).mean().item() + 0.3 * (terms[0] + terms[2])
            )
    losses = [point.loss for point in spent.curve]
    assert losses == pytest.approx(expected, rel=1e-5)
    with skipping(model, [0, 2]):
        assert losses[2:] == pytest.approx(
            [block_losses(model, ids, 4).mean().item() for ids in batches[2:]], rel=1e-6
        )
    assert not any("forward" in vars(layer) for layer in find_layers(model))


def test_fading_without_a_norm_moves_what_the_layers_know(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    ids, other = text_blocks[:64], text_blocks[-40:]
    after = []
    for anneal in (0.0, 0.6):
        model = copy.deepcopy(trained)
        settings = params.Regularise(
            epochs=3.0, batch=4, lr=2e-3, lambda2=0.0, anneal=anneal
        )
        regularise(model, [4, 1, 2], training_data(ids), settings, RUN)
        with skipping(model, [1, 2, 4]):
            after.append(block_losses(model, other, 8).mean())
    with skipping(trained, [1, 2, 4]):
        assert after[1] < block_losses(trained, other, 8).mean() - 0.1
    assert after[1] < after[0] - 0.1  # training alone does not prepare for the removal


def test_each_trial_fades_over_its_own_steps(
    llama: Callable, blocks: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(
        "elder.training.regularise.residual_weight",
        lambda done, anneal: (told.append(done), 0.5)[1],
    )
    settings = params.Regularise(
        epochs=8.0,
        batch=2,
        optimizer="adamw",
        lr="auto",
        lambda2=0.0,
        anneal=0.5,
    )
    spent = regularise(llama(3), [1], training_data(blocks), settings, RUN)
    # 40 steps: a fifth of them for three trials of two whole steps each, the rest in one run
    assert told == [*[1 / 2, 1] * 3, *(step / 32 for step in range(1, 33))]
    assert spent.optimizer_steps == len(told)


def test_an_interrupted_fading_ends_with_the_same_bytes(
    llama: Callable,
    blocks: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_EVERY", -1.0)
    settings = params.Regularise(epochs=2.0, batch=4, lr=1e-2, lambda2=0.1, anneal=0.8)
    whole, broken, resumed = llama(3), llama(3), llama(3)
    expected = regularise(whole, [1], training_data(blocks), settings, RUN)
    resumable = replace(RUN, checkpoint=tmp_path / "run.checkpoint")
    calls: list[int] = []

    def killed(model: Any, ids: torch.Tensor, **known: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return next_token_losses(model, ids, **known)

    with monkeypatch.context() as patch:
        patch.setattr("elder.training.regularise.next_token_losses", killed)
        with pytest.raises(KeyboardInterrupt):
            regularise(
                broken,
                [1],
                training_data(blocks),
                settings,
                resumable,
            )
    assert weights_digest(broken) != weights_digest(resumed)
    spent = regularise(
        resumed,
        [1],
        training_data(blocks),
        settings,
        resumable,
    )
    assert spent == expected
    assert weights_digest(resumed) == weights_digest(whole)


@pytest.mark.parametrize("rank", [0, 2])
def test_computing_each_layer_twice_changes_nothing(
    llama: Callable, blocks: torch.Tensor, rank: int
) -> None:
    if rank:
        pytest.importorskip("peft")
    results = []
    for wanted in (False, True):
        settings = params.Regularise(
            epochs=2.0,
            batch=4,
            lr=1e-2,
            lambda2=0.1,
            anneal=0.8,
            adapter_rank=rank,
            gradient_checkpointing=wanted,
        )
        model = llama(3)
        results.append(
            (
                regularise(model, [1], training_data(blocks), settings, RUN),
                weights_digest(model),
            )
        )
    assert results[0] == results[1]


def test_layers_that_fade_out_leave_nothing_to_compensate(elder: Callable) -> None:
    values = [
        "--set",
        "regularise.epochs=1",
        "--set",
        "regularise.anneal=0.5",
        "--set",
        "compensate.method=linear",
    ]
    done = elder("compress", *values)
    assert done.exit_code == 2
    assert (
        "regularise.anneal is 0.5: layers that fade out leave nothing to mend"
        in done.stderr
    )
