"""Prune&Comp against a literal, slow transcription: layers really go, and what follows each is really scaled."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from elder.errors import UserError
from elder.model.layers import find_layers, remove_layers
from elder.model.load import weights_digest
from elder.selection import METHODS, get_method
from tests.elder.selection.problems import problem

Scores = dict[int, float]


@torch.no_grad()
def literally(
    model: Any, blocks: torch.Tensor, count: int
) -> tuple[list[int], list[Scores]]:
    """Score, cut, scale what the rest of the model gets, and begin anew; one block and one token at a time."""
    model = copy.deepcopy(model)
    names = list(range(len(find_layers(model))))  # of the layers still there
    gone, rounds = [], []
    for _ in range(count):
        scores, sizes = measured(model, blocks)
        place = min(range(len(names)), key=lambda index: scores[index])
        rounds.append(dict(zip(names, scores, strict=True)))
        entering, leaving = sizes[place]
        remove_layers(model, [place])
        after = [*find_layers(model), model.model.norm][place]
        after.register_forward_pre_hook(scaling(leaving / entering), with_kwargs=True)
        gone.append(names.pop(place))
    return gone, rounds


def measured(
    model: Any, blocks: torch.Tensor
) -> tuple[list[float], list[tuple[float, float]]]:
    """Return 1 - mean cos of each layer's states, and the mean norms before and after it."""
    layers = find_layers(model)
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_hook(
            lambda _, given, put_out, here=here: here.append((given[0], put_out))
        )
        for layer, here in zip(layers, seen, strict=True)
    ]
    for ids in blocks:
        model(ids[None])
    for hook in hooks:
        hook.remove()
    scores, sizes = [], []
    for pairs in seen:
        tokens = [
            (a, b)
            for before, after in pairs
            for a, b in zip(before[0], after[0], strict=True)
        ]
        cosines = [(a @ b / (a.norm() * b.norm())).item() for a, b in tokens]
        scores.append(1 - sum(cosines) / len(cosines))
        before = sum(a.norm().item() for a, _ in tokens) / len(tokens)
        after = sum(b.norm().item() for _, b in tokens) / len(tokens)
        sizes.append((before, after))
    return scores, sizes


def scaling(factor: float) -> Any:
    def hook(_: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        return (given[0] * factor, *given[1:]), named

    return hook


def test_it_equals_its_literal_transcription(
    trained: Any, sample: torch.Tensor
) -> None:
    gone, rounds = literally(trained, sample, 3)
    before = weights_digest(trained)
    found = get_method("prune-comp")(problem(trained, sample, 3, method="prune-comp"))
    assert list(found.removed) == gone
    assert len(found.rounds) == 3
    for one, expected in zip(found.rounds, rounds, strict=True):
        values = {i: value for i, value in enumerate(one.values) if value is not None}
        assert values == pytest.approx(expected, abs=1e-5)
    assert found.tokens_seen == found.optimizer_steps == 0
    assert weights_digest(trained) == before
    recipe = METHODS["prune-comp"].recipe
    assert recipe == {"compensate": {"method": "magnitude"}}


def test_states_of_no_size_are_refused(trained: Any, sample: torch.Tensor) -> None:
    model = copy.deepcopy(trained)
    model.get_input_embeddings().weight.zero_()
    with pytest.raises(UserError, match="what enters or leaves layer 0 is 0"):
        get_method("prune-comp")(problem(model, sample, 1, method="prune-comp"))
