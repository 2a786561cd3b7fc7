"""Removal and steering of layers; the sweep over all families is in test_families.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from elder.errors import UserError
from elder.model.forward import logits_of, run_layers
from elder.model.layers import (
    LayerControl,
    find_layers,
    hidden_of,
    remove_layers,
    skipping,
)
from tests.elder.families import logits
from tests.elder.families_others import FAMILIES


# one whose layers return the hidden state, and those that return tuples, lists and pairs
@pytest.fixture(params=["llama", "bloom", "gpt-1", "bamba"])
def family(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param].build()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(5, 290, (2, 24), generator=torch.Generator().manual_seed(0))


def test_layers_removed_in_two_steps_equal_one(
    llama: Callable, blocks: torch.Tensor
) -> None:
    once, twice = llama(6), llama(6)
    remove_layers(once, [1, 4])
    remove_layers(twice, [1])
    remove_layers(twice, [3])  # layer 4 before
    assert torch.equal(logits(once, blocks), logits(twice, blocks))


def test_tied_embeddings_stay_tied(trained: Any) -> None:
    remove_layers(trained, [2])
    assert trained.lm_head.weight is trained.model.embed_tokens.weight


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [4], [-1], [1, 7]])
def test_all_layers_or_others_cannot_go(
    llama: Callable, indices: list[int], blocks: torch.Tensor
) -> None:
    model = llama(4)
    before = logits(model, blocks)
    with pytest.raises(UserError, match=r"cannot remove layers .* 0 to 3"):
        remove_layers(model, indices)
    assert torch.equal(logits(model, blocks), before)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2
    )
    with pytest.raises(UserError, match="T5ForConditionalGeneration has an encoder"):
        find_layers(transformers.T5ForConditionalGeneration(config))


def test_observe_sees_what_enters_and_leaves_each_layer(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(3)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    by_hooks: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(
            lambda _, args, output: by_hooks.extend([args[0], hidden_of(output)])
        )
    with LayerControl(find_layers(model)) as control:
        control.observe = lambda index, entering, leaving: seen.__setitem__(
            index, (entering, leaving)
        )
        logits(model, blocks)
    states = [state for index in range(3) for state in seen[index]]
    assert len(by_hooks) == 6
    assert all(torch.equal(a, b) for a, b in zip(states, by_hooks, strict=True))
    assert torch.equal(seen[0][1], seen[1][0])


def test_output_weights_scale_what_a_layer_puts_out(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(3)
    plain, scaled = {}, {}
    with LayerControl(find_layers(model)) as control:
        control.observe = lambda index, _, leaving: plain.__setitem__(index, leaving)
        logits(model, blocks)
        control.observe = lambda index, entering, leaving: scaled.__setitem__(
            index, (entering, leaving)
        )
        control.weights, control.place = torch.tensor([0.5, 1.0, 1.0]), "output"
        logits(model, blocks)
        assert torch.equal(scaled[0][1], 0.5 * plain[0])
        assert torch.equal(scaled[1][0], 0.5 * plain[0])
        control.place = "residual"
        logits(model, blocks)
    entering = scaled[0][0]
    assert torch.allclose(scaled[0][1], entering + 0.5 * (plain[0] - entering))


def test_replay_replaces_what_enters_a_layer(family: Any, ids: torch.Tensor) -> None:
    states: dict[int, torch.Tensor] = {}
    with LayerControl(find_layers(family)) as control:
        control.observe = lambda index, entering, _: states.__setitem__(index, entering)
        whole = logits(family, ids)
        control.observe = None
        control.replay = {3: states[3]}
        control.bypassed = {0, 1, 2}
        assert torch.equal(logits(family, ids), whole)


def test_the_model_is_itself_again_after_an_exception(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(3)
    before = logits(model, blocks)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), LayerControl(find_layers(model)) as control:  # noqa: PT012
        control.bypassed, control.observe = {1}, fail
        logits(model, blocks)
    assert not any("forward" in vars(layer) for layer in find_layers(model))
    assert torch.equal(logits(model, blocks), before)


def test_a_control_within_another_leaves_the_outer_one_in_force(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(4)
    with skipping(model, [1]):
        outer = logits(model, blocks)
        with skipping(model, [2]):
            both = logits(model, blocks)
        assert torch.equal(logits(model, blocks), outer)
    remove_layers(model, [1, 2])
    assert torch.equal(logits(model, blocks), both)


def states(model: Any, run: Callable[[], Any]) -> list[torch.Tensor]:
    """Return what enters and leaves each layer while the model runs."""
    seen: list[torch.Tensor] = []
    with torch.no_grad(), LayerControl(find_layers(model)) as control:
        control.observe = lambda _, entering, leaving: seen.extend([entering, leaving])
        run()
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_alone_have_the_states_of_the_whole_model(
    name: str, ids: torch.Tensor
) -> None:
    model = FAMILIES[name].build()
    whole = states(model, lambda: logits_of(model, ids))
    model.get_output_embeddings().register_forward_pre_hook(
        lambda *_: pytest.fail("the head ran")
    )
    alone = states(model, lambda: run_layers(model, ids))
    assert len(alone) == len(whole) == 12
    assert all(map(torch.equal, alone, whole))
    few = states(model, lambda: run_layers(model, ids, last=2))
    assert len(few) == 6
    assert all(map(torch.equal, few, whole[:6]))
    assert not any(layer._forward_hooks for layer in find_layers(model))
