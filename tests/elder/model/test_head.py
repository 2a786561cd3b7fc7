"""The head, a few positions at a time: the numbers and gradients of the whole, and never its logits."""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

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
    monkeypatch.setattr(head, "positions_at_once", lambda *_: positions)
    for mine, its in zip(losses_and_gradients(), whole, strict=True):
        torch.testing.assert_close(mine, its)


class Held:
    """A tensor that a backward pass will need."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def test_no_more_than_one_portion_is_held_and_none_computed_twice(
    llama: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    words = model.config.vocab_size
    monkeypatch.setattr(head, "positions_at_once", lambda *_: 4)
    seen: list[int] = []
    living: WeakSet[Held] = WeakSet()
    most = 0

    def loss(states: torch.Tensor) -> torch.Tensor:
        logits = logits_of_states(model, states)
        seen.append(logits.numel())
        return logits.logsumexp(-1)

    def logits_held() -> list[Held]:
        return [held for held in living if held.tensor.shape == (4, words)]

    def hold(tensor: torch.Tensor) -> Held:
        nonlocal most
        held = Held(tensor)
        living.add(held)
        most = max(most, len(logits_held()))
        return held

    states: Any = torch.randn(40, model.config.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda held: held.tensor):
        total = by_position(model, loss, states).sum()
    assert not logits_held()
    total.backward()
    assert most == 1
    assert seen == 10 * [4 * words]


def test_weights_learn_from_positions_that_weigh_alike(
    llama: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    monkeypatch.setattr(head, "positions_at_once", lambda *_: 4)
    losses = next_token_losses(model, torch.randint(0, 60, (2, 9)))
    with pytest.raises(ValueError, match="weigh alike"):
        losses[0].backward()
    # by the states alone each position may weigh what it likes
    model.requires_grad_(False)
    states: Any = torch.randn(2, 9, model.config.hidden_size, requires_grad=True)
    ids = torch.randint(0, 60, (2, 9))
    (found,) = torch.autograd.grad(
        next_token_losses(model, ids, states=states)[0], states
    )
    monkeypatch.setattr(head, "positions_at_once", lambda *_: 1000)
    (wanted,) = torch.autograd.grad(
        next_token_losses(model, ids, states=states)[0], states
    )
    torch.testing.assert_close(found, wanted)


def test_a_plan_runs_portions_without_values(
    llama: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    monkeypatch.setattr(head, "positions_at_once", lambda *_: 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ids = torch.randint(0, 60, (2, 9))
        next_token_losses(model, ids).mean().backward()
    assert all(weight.grad is not None for weight in model.parameters())
