"""Shortened LLaMA, by perplexity and by Taylor scores, against literal, slow transcriptions of its definitions."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from elder.model.layers import find_layers, remove_layers
from elder.selection import get_method, shortened
from elder.selection.shortened import kept_ends
from tests.elder.selection.problems import problem


def test_shortened_ppl_equals_its_literal_transcription(
    trained: Any, sample: torch.Tensor
) -> None:
    perplexities = []
    for candidate in range(6):
        cut = copy.deepcopy(trained)
        remove_layers(cut, [candidate])
        losses = [cut(ids[None], labels=ids[None]).loss.item() for ids in sample]
        perplexities.append(math.exp(sum(losses) / len(losses)))
    found = get_method("shortened-ppl")(problem(trained, sample, 3))
    assert len(found.rounds) == 1
    assert [math.exp(value or 0) for value in found.rounds[0].values] == pytest.approx(
        perplexities, rel=1e-4
    )
    assert (
        list(found.removed)
        == sorted(range(6), key=lambda index: perplexities[index])[:3]
    )
    assert found.tokens_seen == 0


def literal_taylor(model: Any, blocks: torch.Tensor) -> list[float]:
    """Give |sum w * dL/dw|, element by element, summed over the matrices of each layer; L over all blocks at once."""
    model = copy.deepcopy(model).requires_grad_(True)
    model(blocks, labels=blocks).loss.backward()
    scores = []
    for layer in find_layers(model):
        score = 0.0
        for weight in layer.parameters():
            if weight.ndim == 2:
                total = 0.0
                for w, g in zip(
                    weight.flatten().tolist(),
                    weight.grad.flatten().tolist(),
                    strict=True,
                ):
                    total += w * g
                score += abs(total)
        scores.append(score)
    return scores


def test_shortened_taylor_equals_its_literal_transcription(
    trained: Any, sample: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = literal_taylor(trained, sample)
    monkeypatch.setattr(shortened, "FIRST", 0)
    monkeypatch.setattr(shortened, "LAST", 0)
    found = get_method("shortened-taylor")(
        problem(trained, sample, 3, method="shortened-taylor")
    )
    assert found.rounds[0].values == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert (
        list(found.removed) == sorted(range(6), key=lambda index: expected[index])[:3]
    )
    assert (found.tokens_seen, found.optimizer_steps) == (10 * 48, 0)  # each token once


def test_shortened_taylor_keeps_the_first_four_and_the_last_two(
    llama: Callable, blocks: torch.Tensor
) -> None:
    model = llama(10)
    scores = literal_taylor(model, blocks)
    found = get_method("shortened-taylor")(
        problem(model, blocks, 2, method="shortened-taylor")
    )
    assert (
        list(found.removed) == sorted(range(4, 8), key=lambda index: scores[index])[:2]
    )
    assert [
        index for index, value in enumerate(found.rounds[0].values) if value is not None
    ] == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("layers", "count", "protect", "kept"),
    [
        (12, 6, (), (4, 2)),
        (12, 7, (), (3, 2)),
        (6, 2, (), (2, 2)),  # 6 - 4 - 2 leaves none: (3, 2) leaves one, (2, 2) two
        (6, 3, (), (1, 2)),
        (6, 5, (), (0, 1)),
        (6, 2, (2, 3), (1, 1)),  # layers 1 and 4 may go
        (6, 6, (), (0, 0)),
    ],
)
def test_the_kept_ends_give_way_where_too_few_layers_are_left(
    layers: int,
    count: int,
    protect: tuple[int, ...],
    kept: tuple[int, int],
    capsys: Any,
) -> None:
    assert kept_ends(problem(None, torch.zeros(0), count, protect), layers) == kept
    said = "so it keeps the first" in " ".join(capsys.readouterr().err.split())
    assert said == (kept != (4, 2))


def test_shortened_taylor_leaves_every_flag_and_no_gradient(
    trained: Any, sample: torch.Tensor
) -> None:
    for number, parameter in enumerate(trained.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    before = [parameter.requires_grad for parameter in trained.parameters()]
    get_method("shortened-taylor")(
        problem(trained, sample, 2, method="shortened-taylor")
    )
    assert [parameter.requires_grad for parameter in trained.parameters()] == before
    assert all(parameter.grad is None for parameter in trained.parameters())
