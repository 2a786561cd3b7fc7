"""The optimiser of all training: how its state comes about."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from elder.model.forward import next_token_losses
from elder.model.load import weights_digest
from elder.training import optim
from elder.training.checkpoint import Schedule
from elder.training.loop import TrainingRun, train
from elder.training.optim import Optimizer


def test_moments_made_beforehand_change_nothing(
    llama: Callable, blocks: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(
        steps=3,
        batch=2,
        optimizer="adamw",
        lr=0.01,
        relative=True,
        warmup=0.0,
        weight_decay=0.0,
        seed=0,
    )

    def learnt() -> str:
        model: Any = llama()
        optimizer = Optimizer(model, "adamw", 0.01, True, 0.0)
        assert len(optimizer.state()) == made * len(list(model.parameters()))
        train(
            model,
            blocks,
            lambda ids: next_token_losses(model, ids).mean(),
            schedule,
            TrainingRun("x", 0, torch.float32),
        )
        return weights_digest(model)

    made = 3  # of each weight: two moments, and the steps
    beforehand = learnt()
    monkeypatch.setattr(optim, "make_moments", lambda part: None)
    made = 0
    assert learnt() == beforehand
