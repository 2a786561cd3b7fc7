"""The head, a few positions at a time: the numbers and gradients of the whole, and never its logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from elder.model import head
from elder.model.forward import next_token_losses
from elder.model.head import by_position, logits_of_states, states_of
from tests.elder.families import Family
from tests.elder.families_others import FAMILIES


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_states_and_head_are_the_model(family: Family) -> None:
    torch.manual_seed(0)
    model = family.build()
    ids = torch.randint(0, 60, (2, 12))
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        found = logits_of_states(model, states_of(model, ids).flatten(0, 1))
        assert torch.equal(found, whole.flatten(0, 1))
        # and the model is as it was
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, whole)


def test_the_loss_is_the_mean_over_all_positions_of_a_block(llama: Callable) -> None:
    model = llama()
    ids = torch.randint(0, model.config.vocab_size, (3, 9))
    logits = model(input_ids=ids).logits
    for given in (1, 4):
        expected = [
            F.cross_entropy(row[given - 1 : -1], its[given:]).item()
            for row, its in zip(logits, ids, strict=True)
        ]
        found = next_token_losses(model, ids, given)
        assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("positions", [1, 5, 24])
def test_portions_give_the_numbers_and_gradients_of_the_whole(
    llama: Callable, monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    model = llama()
    ids = torch.randint(0, model.config.vocab_size, (3, 9))

    def losses_and_gradients() -> list[torch.Tensor]:
        losses = next_token_losses(model, ids)
        gradients = torch.autograd.grad(losses.sum(), list(model.parameters()))
        return [losses.detach(), *gradients]

    whole = losses_and_gradients()
    monkeypatch.setattr(head, "AT_ONCE", positions * model.config.vocab_size)
    for mine, its in zip(losses_and_gradients(), whole, strict=True):
        torch.testing.assert_close(mine, its)


def test_no_more_than_one_portion_is_held(
    llama: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    words = model.config.vocab_size
    monkeypatch.setattr(head, "AT_ONCE", 4 * words)
    seen: list[int] = []
    kept: list[int] = []

    def loss(states: torch.Tensor) -> torch.Tensor:
        logits = logits_of_states(model, states)
        seen.append(logits.numel())
        return logits.logsumexp(-1)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    states: Any = torch.randn(40, model.config.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = by_position(model, loss, states).sum()
    # what the backward pass holds is states, not logits
    assert max(kept, default=0) < 4 * words
    total.backward()
    assert max(seen) == 4 * words
    assert len(seen) == 20  # each of ten portions, and once more for its gradient
