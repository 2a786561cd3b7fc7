"""The rival methods that score each layer or block alone, against literal, slow transcriptions; and the floors."""

import copy
import math
from typing import Any

import pytest
import torch

from elder.errors import UserError
from elder.model.layers import find_layers, remove_layers
from elder.selection import get_method
from elder.selection.angular import angular_distance
from tests.elder.selection.problems import literal_states, problem

# --- shortgpt ---


@torch.no_grad()
def literal_block_influence(model: Any, blocks: torch.Tensor) -> list[float]:
    """Give 1 - mean over all tokens of cos(h_i, h_{i+1}), one block at a time; the last state is before the norm."""
    last: list[torch.Tensor] = []
    hook = find_layers(model)[-1].register_forward_hook(
        lambda _, __, output: last.append(output)
    )
    cosines: list[list[float]] = [[] for _ in find_layers(model)]
    for ids in blocks:
        states = [
            *model(ids[None], output_hidden_states=True).hidden_states[:-1],
            last.pop(),
        ]
        for index in range(len(cosines)):
            for token in range(len(ids)):
                a, b = states[index][0, token], states[index + 1][0, token]
                cosines[index].append((a @ b / (a.norm() * b.norm())).item())
    hook.remove()
    return [1 - sum(values) / len(values) for values in cosines]


def test_shortgpt_equals_its_literal_transcription(
    trained: Any, sample: torch.Tensor
) -> None:
    expected = literal_block_influence(trained, sample)
    found = get_method("shortgpt")(problem(trained, sample, 3))
    assert len(found.rounds) == 1
    assert found.rounds[0].values == pytest.approx(expected, abs=1e-5)
    assert list(found.removed) == sorted(range(6), key=lambda i: expected[i])[:3]
    assert found.tokens_seen == found.optimizer_steps == 0


# --- sleb ---


@torch.no_grad()
def literal_sleb(
    model: Any, blocks: torch.Tensor, count: int
) -> tuple[list[int], list[dict[int, float]]]:
    """Take layers out for good, one candidate at a time, with a whole pass over the blocks for each."""
    gone: list[int] = []
    rounds = []
    for _ in range(count):
        losses = {}
        for candidate in range(1, 5):
            if candidate not in gone:
                cut = copy.deepcopy(model)
                remove_layers(cut, [*gone, candidate])
                losses[candidate] = sum(
                    cut(ids[None], labels=ids[None]).loss.item() for ids in blocks
                ) / len(blocks)
        rounds.append(losses)
        gone.append(min(losses, key=lambda index: losses[index]))
    return gone, rounds


def test_sleb_equals_its_literal_transcription(
    trained: Any, sample: torch.Tensor
) -> None:
    gone, rounds = literal_sleb(trained, sample, 3)
    found = get_method("sleb")(problem(trained, sample, 3, method="sleb"))
    assert list(found.removed) == gone
    for one, expected in zip(found.rounds, rounds, strict=True):
        assert {
            i: value for i, value in enumerate(one.values) if value is not None
        } == pytest.approx(expected, abs=1e-5)
        assert one.values[0] is None
        assert one.values[5] is None


# --- angular ---


def test_angular_distance_by_hand() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    # 0, 90, 180 and 45 degrees
    b = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    assert angular_distance(a, b).tolist() == pytest.approx([0, 0.5, 1, 0.25], abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_angular_equals_its_literal_transcription(
    trained: Any, sample: torch.Tensor, count: int
) -> None:
    distances = []
    for first in range(6 - count + 1):
        angles = []
        for ids in sample:
            states = literal_states(trained, ids)
            a, b = states[first].double(), states[first + count].double()
            angles.append(math.acos((a @ b / (a.norm() * b.norm())).item()) / math.pi)
        distances.append(sum(angles) / len(angles))
    best = distances.index(min(distances))
    found = get_method("angular")(problem(trained, sample, count))
    assert found.removed == tuple(range(best, best + count))
    assert found.rounds[0].values[: len(distances)] == pytest.approx(
        distances, abs=1e-5
    )
    assert found.rounds[0].values[len(distances) :] == (None,) * (count - 1)


def test_angular_passes_over_blocks_with_a_protected_layer(
    trained: Any, sample: torch.Tensor
) -> None:
    found = get_method("angular")(problem(trained, sample, 2, protect=(3,)))
    assert [value is not None for value in found.rounds[0].values] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    with pytest.raises(
        UserError,
        match=r"removes 3 adjacent layers, but with \[1, 4\] protected no 3 of 6",
    ):
        get_method("angular")(problem(trained, sample, 3, protect=(1, 4)))


# --- floors ---


def test_random_follows_the_seed(trained: Any, sample: torch.Tensor) -> None:
    choices = {
        get_method("random")(problem(trained, sample, 3, seed=seed)).removed
        for seed in range(8)
    }
    assert len(choices) > 4
    assert {len(set(choice)) for choice in choices} == {3}


def test_last_takes_the_last_layers_that_are_not_protected(
    trained: Any, sample: torch.Tensor
) -> None:
    assert get_method("last")(problem(trained, sample, 3)).removed == (5, 4, 3)
    assert get_method("last")(problem(trained, sample, 3, protect=(4,))).removed == (
        5,
        3,
        2,
    )
