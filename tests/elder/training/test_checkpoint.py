"""Checkpoints: an interrupted run ends with the same bytes, and what cannot be read or does not fit is not taken up."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from elder.model.forward import next_token_losses
from elder.model.load import weights_digest
from elder.training import checkpoint as checkpoints
from elder.training.checkpoint import Schedule
from elder.training.loop import TrainingRun, train

PLAN = Schedule(
    6, 4, "adamw", lr=1e-2, relative=False, warmup=0.0, weight_decay=0.1, seed=3
)
RUN = TrainingRun("test", 0, torch.float32)


def next_token(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda ids: next_token_losses(model, ids).mean()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    # has dropout
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    )


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where checkpoints lie, which are written after every step."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_EVERY", -1.0)
    return tmp_path / "run.checkpoint"


@pytest.mark.parametrize(
    ("family", "optimizer"), [("llama", "adamw"), ("gpt2", "adamw"), ("llama", "muon")]
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    family: str,
    optimizer: str,
    llama: Callable,
    blocks: torch.Tensor,
    checkpoint: Path,
) -> None:
    def fresh() -> Any:
        return gpt2() if family == "gpt2" else llama(2)

    plan = replace(PLAN, optimizer=optimizer)
    whole = fresh()
    expected = train(whole, blocks, next_token(whole), plan, RUN)

    broken = fresh()
    loss, calls = next_token(broken), []

    def killed(ids: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(ids)

    with pytest.raises(KeyboardInterrupt):
        train(broken, blocks, killed, plan, replace(RUN, checkpoint=checkpoint))
    resumed, steps = fresh(), []
    loss_again = next_token(resumed)
    spent = train(
        resumed,
        blocks,
        lambda ids: (steps.append(1), loss_again(ids))[1],
        plan,
        replace(RUN, checkpoint=checkpoint),
    )
    assert len(steps) == 3  # three of six were done
    assert weights_digest(resumed) == weights_digest(whole)
    assert spent == expected
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_checkpoint_of_another_schedule_is_not_used(
    llama: Callable, blocks: torch.Tensor, checkpoint: Path
) -> None:
    model = llama(2)
    train(model, blocks, next_token(model), PLAN, replace(RUN, checkpoint=checkpoint))
    other = Schedule(**{**asdict(PLAN), "seed": 4})
    with_it, without = llama(2), llama(2)
    train(
        with_it, blocks, next_token(with_it), other, replace(RUN, checkpoint=checkpoint)
    )
    train(without, blocks, next_token(without), other, RUN)
    assert weights_digest(with_it) == weights_digest(without)


@pytest.mark.parametrize(
    "fault", ["empty", "truncated", "zeroed", "older", "smaller", "fewer"]
)
def test_a_checkpoint_that_cannot_be_used_is_none(
    fault: str, llama: Callable, blocks: torch.Tensor, checkpoint: Path
) -> None:
    expected = llama(2)
    whole = train(
        expected,
        blocks,
        next_token(expected),
        PLAN,
        replace(RUN, checkpoint=checkpoint),
    )
    spoil(checkpoint, fault)
    model = llama(2)
    spent = train(
        model, blocks, next_token(model), PLAN, replace(RUN, checkpoint=checkpoint)
    )
    assert spent == whole
    assert weights_digest(model) == weights_digest(expected)


def spoil(path: Path, fault: str) -> None:
    """Leave a checkpoint that a power cut, an older version or another model could have left."""
    content = path.read_bytes()
    plain = {"empty": b"", "truncated": content[:-100], "zeroed": bytes(len(content))}
    if fault in plain:
        path.write_bytes(plain[fault])
        return
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    tensors = load_file(path)
    if fault == "older":
        notes = {"schedule": notes["schedule"], "spent": '{"curve": [1]}'}
    elif fault == "smaller":
        tensors["w.0"] = tensors["w.0"][:-1].contiguous()
    else:
        del tensors["w.3"]
    save_file(tensors, path, metadata=notes)
