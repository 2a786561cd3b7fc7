"""Making a model ready to train: layers that torch compiles learn what others learn, and are left as they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from elder.model.forward import next_token_losses
from elder.model.layers import find_layers
from elder.training.ready import checkpointing, compiled, trainable


@pytest.mark.parametrize("rank", [0, 2])
def test_compiled_layers_learn_the_same(llama: Callable, rank: int) -> None:
    model: Any = llama()
    layers = list(find_layers(model))
    ids = torch.randint(0, model.config.vocab_size, (2, 12))

    def gradients(trained: Any) -> list[torch.Tensor]:
        trained.zero_grad(set_to_none=True)
        next_token_losses(trained, ids).mean().backward()
        return [one.grad for one in trained.parameters() if one.grad is not None]

    with trainable(model, rank, 0) as trained, checkpointing(model):
        plain = gradients(trained)
        with compiled(trained, True):
            assert all(layer._compiled_call_impl for layer in layers)
            found = gradients(trained)
        assert not any(layer._compiled_call_impl for layer in layers)
    assert plain
    for mine, its in zip(found, plain, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
