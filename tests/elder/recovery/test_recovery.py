"""Recovery: by the text, by the dense model's predictions and hidden states, with adapters, on text it writes."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from elder import params
from elder.data import batch_indices
from elder.errors import UserError
from elder.model.forward import block_losses, logits_of, next_token_losses
from elder.model.layers import remove_layers
from elder.model.load import weights_digest
from elder.record import Spent, plain
from elder.recovery import RECOVERIES, Student, student_of
from elder.recovery import recover as run_recovery
from elder.recovery.distil import DistilSettings, matching_layers
from elder.settings import validate
from elder.training.data import training_data
from elder.training.loop import TrainingRun, train
from elder.training.losses import divergences, state_mismatch
from elder.training.synthesis import Writing, synthetic_blocks
from elder.training.tune import ADAPTER_LR_GRID

FLOAT = torch.float32
RUN = TrainingRun("recover", 0, FLOAT)


def recover(
    model: Any,
    dense: Any,
    data: Any,
    settings: params.Recover,
    run: TrainingRun,
    removed: tuple[int, ...] = (),
) -> Spent:
    student = student_of(settings, model, dense, removed)
    return run_recovery(student, data, settings, run)


@pytest.mark.parametrize("lr", ["auto", 2e-3])
def test_distillation_lowers_the_divergence_from_the_dense_model(
    trained: Any, trained_model: Any, text_blocks: torch.Tensor, lr: Any
) -> None:
    ids, other = text_blocks[:64], text_blocks[-20:]

    @torch.no_grad()
    def divergence() -> float:
        return (
            divergences(logits_of(trained, other), logits_of(trained_model, other))
            .mean()
            .item()
        )

    remove_layers(trained, [2, 4])
    before, dense = divergence(), weights_digest(trained_model)
    recover(
        trained,
        trained_model,
        training_data(ids),
        params.Recover(epochs=3.0, batch=8, lr=lr),
        RUN,
    )
    assert divergence() < 0.8 * before
    assert weights_digest(trained_model) == dense


# --- hidden states and next tokens beside the divergence ---


def test_each_kept_layer_answers_for_the_removed_ones_after_it() -> None:
    # 0, 1, 4 and 5 are kept: layer 1 leaves what enters layer 4, so what layer 3 left
    assert matching_layers(6, [3, 2]) == [0, 3, 4, 5]
    assert matching_layers(4, [0, 3]) == [
        1,
        3,
    ]  # the last kept layer leaves what the final norm reads
    assert matching_layers(3, []) == [0, 1, 2]


def states_after(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return what each layer puts out, by hooks of torch."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda *given: found.append(given[2]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    return found


def mismatch(student: Any, dense: Any, ids: torch.Tensor, depths: list[int]) -> float:
    mine, its = states_after(student, ids), states_after(dense, ids)
    return sum(
        state_mismatch(mine[i], its[depth]).item() for i, depth in enumerate(depths)
    ) / len(depths)


def test_the_distilled_loss_by_hand(
    trained: Any, trained_model: Any, text_blocks: torch.Tensor
) -> None:
    remove_layers(trained, [2, 5])
    settings = params.Recover(
        epochs=0.1,
        batch=4,
        lr=1e-12,
        distil=DistilSettings(next_token=0.25, hidden=2.0),
    )
    spent = recover(
        trained,
        trained_model,
        training_data(text_blocks[:40]),
        settings,
        replace(RUN, seed=7),
        [5, 2],
    )
    ids = text_blocks[batch_indices(40, 4, 0, 7)]
    with torch.no_grad():
        divergence = (
            divergences(logits_of(trained, ids), logits_of(trained_model, ids))
            .mean()
            .item()
        )
    states = mismatch(trained, trained_model, ids, [0, 2, 3, 5])
    expected = (
        0.75 * divergence
        + 0.25 * block_losses(trained, ids, 4).mean().item()
        + 2.0 * states
    )
    assert divergence > 0.01
    assert states > 0.01
    assert [point.loss for point in spent.curve] == pytest.approx([expected], rel=1e-5)


def test_matched_states_come_closer_to_the_dense_models(
    trained: Any, trained_model: Any, llama: Callable, text_blocks: torch.Tensor
) -> None:
    remove_layers(trained, [2, 4])
    start, other, dense = (
        weights_digest(trained),
        text_blocks[-20:],
        weights_digest(trained_model),
    )
    before = mismatch(trained, trained_model, other, [0, 2, 4, 5])
    after = []
    for hidden in (0.0, 1.0):
        student = copy.deepcopy(trained)
        settings = params.Recover(
            epochs=3.0,
            batch=8,
            lr=2e-3,
            optimizer="adamw",
            distil=DistilSettings(hidden=hidden),
        )
        recover(
            student,
            trained_model,
            training_data(text_blocks[:64]),
            settings,
            RUN,
            [2, 4],
        )
        after.append(mismatch(student, trained_model, other, [0, 2, 4, 5]))
        assert (
            block_losses(student, other, 8).mean()
            < block_losses(trained, other, 8).mean()
        )
        assert not any(
            "forward" in vars(layer)
            for layer in [*student.model.layers, *trained_model.model.layers]
        )
    assert after[1] < 0.8 * min(before, after[0])
    assert (weights_digest(trained), weights_digest(trained_model)) == (start, dense)


@pytest.mark.parametrize("rank", [0, 2])
def test_computing_each_layer_twice_changes_nothing(
    trained: Any, trained_model: Any, text_blocks: torch.Tensor, rank: int
) -> None:
    if rank:
        pytest.importorskip("peft")
    remove_layers(trained, [2, 4])
    results = []
    for wanted in (False, True):
        student = copy.deepcopy(trained)
        settings = params.Recover(
            epochs=2.0,
            batch=4,
            lr=1e-2,
            distil=DistilSettings(next_token=0.2, hidden=1.0),
            adapter_rank=rank,
            gradient_checkpointing=wanted,
        )
        spent = recover(
            student,
            trained_model,
            training_data(text_blocks[:24]),
            settings,
            RUN,
            [2, 4],
        )
        results.append((spent, weights_digest(student)))
    assert results[0] == results[1]
    assert spent.curve[-1].loss < spent.curve[0].loss


def test_a_compression_knows_which_states_to_match(elder: Callable) -> None:
    done = elder(
        "compress",
        "--set",
        "recover.distil.hidden=1",
        "--set",
        "recover.distil.next_token=0.5",
    )
    assert done.exit_code == 0, done.stderr


# --- adapters ---


def test_adapters_train_and_merge_into_a_plain_model(
    trained: Any, text_blocks: torch.Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    names = set(trained.state_dict())
    embedding = trained.model.embed_tokens.weight.clone()
    query = trained.model.layers[0].self_attn.q_proj.weight.clone()
    remove_layers(trained, [3])
    before = block_losses(trained, text_blocks[:40], 8).mean()
    settings = params.Recover(
        epochs=4.0, batch=4, lr=1e-2, adapter_rank=2, mode="train"
    )
    spent = recover(trained, None, training_data(text_blocks[:40]), settings, RUN)
    assert block_losses(trained, text_blocks[:40], 8).mean() < before - 0.02
    assert set(trained.state_dict()) == {
        n for n in names if not n.startswith("model.layers.5.")
    }
    assert torch.equal(trained.model.embed_tokens.weight, embedding)
    assert not torch.equal(trained.model.layers[0].self_attn.q_proj.weight, query)
    assert (
        0
        < spent.trainable_parameters
        < sum(p.numel() for p in trained.parameters()) / 4
    )
    trained.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(text_blocks[:1]).logits, trained(text_blocks[:1]).logits)


def test_an_automatic_rate_moves_adapters_too(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    pytest.importorskip("peft")
    remove_layers(trained, [3])
    before = block_losses(trained, text_blocks[-40:], 8).mean()
    settings = params.Recover(
        epochs=4.0, batch=4, optimizer="adamw", adapter_rank=4, mode="train"
    )
    spent = recover(trained, None, training_data(text_blocks[:40]), settings, RUN)
    assert [plain(trial)["lr"] for trial in spent.search] == list(ADAPTER_LR_GRID)
    assert block_losses(trained, text_blocks[-40:], 8).mean() < before - 0.02


# --- text that the dense model writes ---


def test_the_dense_model_writes_on_from_calibration_text(
    trained_model: Any, text_blocks: torch.Tensor, tmp_path: Path
) -> None:
    calibration, kept = text_blocks[:10], tmp_path / "kept.safetensors"
    wanted = Writing(24, seed=0)
    written = synthetic_blocks(trained_model, calibration, wanted, kept)
    assert (written.shape, written.dtype) == ((24, 48), torch.int64)
    # 48 / 16 = 3 tokens are calibration text
    windows = calibration.unfold(1, 3, 1).reshape(-1, 3).tolist()
    assert all(row[:3].tolist() in windows for row in written)
    assert len({tuple(row.tolist()) for row in written}) == 24
    assert torch.equal(synthetic_blocks(trained_model, calibration, wanted), written)
    other = synthetic_blocks(trained_model, calibration, Writing(24, seed=1))
    assert not torch.equal(other, written)
    # read, not written again
    assert torch.equal(synthetic_blocks(None, calibration, wanted, kept), written)
    # it writes what it holds likely: far better than random tokens, whose loss is over ln 257 = 5.5
    assert block_losses(trained_model, written, 8).mean() < 3.5


def test_synthetic_blocks_stretch_the_data_and_not_the_budget(
    trained: Any,
    trained_model: Any,
    text_blocks: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data: list[torch.Tensor] = []
    real = train
    monkeypatch.setattr(
        "elder.training.tune.train",
        lambda m, given, *rest: (data.append(given), real(m, given, *rest))[1],
    )
    remove_layers(trained, [2])
    settings = params.Recover(epochs=2.0, batch=4, lr=1e-3)
    more = text_blocks[100:124]
    spent = recover(
        trained, trained_model, training_data(text_blocks[:8], more), settings, RUN
    )
    # two passes over the calibration blocks, whatever stands beside them
    assert spent.tokens_seen == 2 * 8 * 48
    assert spent.tokens_generated == 24 * 48
    # calibration text last: it is what is held out
    assert torch.equal(data[0], torch.cat([more, text_blocks[:8]]))


# --- a further one ---


class Share(params.Section):
    share: float = 0.5


def test_a_new_recovery_is_one_function_with_its_settings(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    @RECOVERIES.register("scaled", settings=Share)
    def scaled(student: Student[Share]) -> Any:
        return lambda ids: (
            student.settings.share * next_token_losses(student.model, ids).mean()
        )

    try:
        made = validate({"recover": {"mode": "scaled", "scaled": {"share": 0.25}}})
        assert made.recover.own()["scaled"] == {"share": 0.25}
        settings = made.recover.model_copy(update={"epochs": 0.25, "lr": 1e-12})
        first = text_blocks[batch_indices(8, 4, 0, 0)]
        loss = next_token_losses(trained, first).mean().item()
        spent = recover(trained, None, training_data(text_blocks[:8]), settings, RUN)
        assert spent.curve[0].loss == pytest.approx(0.25 * loss, rel=1e-5)
        with pytest.raises(UserError, match="scaled.shar: unknown key"):
            validate({"recover": {"scaled": {"shar": 1}}})
    finally:
        del RECOVERIES.entries["scaled"]
