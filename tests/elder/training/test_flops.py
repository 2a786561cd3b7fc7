"""Floating-point operations: what is counted and what is worked out agree with what torch counts itself."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elder.model.forward import next_token_losses
from elder.model.layers import find_layers, skipping
from elder.params import Recover
from elder.training.flops import Counter, head_size, of_training, passed, size
from elder.training.ready import checkpointing, trainable


def by_torch(work: Callable[[], object]) -> int:
    """Return what torch counts; on a CPU it knows no attention."""
    with FlopCounterMode(display=False) as mode:
        work()
    return mode.get_total_flops()


def counted(work: Callable[[], object]) -> int:
    with Counter() as counter:
        work()
    return counter.flops


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_counted_is_what_torch_counts(llama: Callable, tied: bool) -> None:
    model: Any = llama(tie_word_embeddings=tied)
    ids = torch.randint(0, model.config.vocab_size, (2, 12))

    @torch.no_grad()
    def look() -> None:
        with skipping(model, [1, 2]):
            next_token_losses(model, ids)

    def learn() -> None:
        next_token_losses(model, ids).mean().backward()

    assert counted(look) == by_torch(look) > 0
    assert counted(learn) == by_torch(learn) > 2 * counted(look)
    model.requires_grad_(False)
    find_layers(model)[3].requires_grad_(True)  # no gradient goes below it
    assert counted(learn) == by_torch(learn)


def test_nothing_is_counted_outside(llama: Callable) -> None:
    model: Any = llama()
    ids = torch.randint(0, model.config.vocab_size, (1, 4))
    with Counter() as counter:
        pass
    next_token_losses(model, ids)
    assert counter.flops == 0


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("again", [False, True])
def test_what_is_worked_out_is_nearly_what_torch_counts(
    llama: Callable, rank: int, again: bool
) -> None:
    model: Any = llama()
    ids = torch.randint(0, model.config.vocab_size, (1, 129))
    settings = Recover(adapter_rank=rank, gradient_checkpointing=again)
    expected = of_training(model, settings, 129)
    with trainable(model, rank, 0) as trained:
        thrifty = checkpointing(trained) if again else nullcontext()
        trained.train()
        with thrifty:
            found = by_torch(lambda: next_token_losses(trained, ids).sum().backward())
    # the last token predicts nothing; torch counts adapters, too, and knows no norms
    assert found == pytest.approx(expected, rel=0.15 if rank else 0.06)


def test_norms_and_embeddings_are_small(llama: Callable) -> None:
    model: Any = llama()
    layers = find_layers(model)
    norms = sum(one.numel() for one in layers.parameters() if one.ndim == 1)
    assert passed(model) == size(layers) + head_size(model)
    assert norms < passed(model) / 100
