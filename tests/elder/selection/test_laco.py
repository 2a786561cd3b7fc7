"""LaCo against a literal, slow transcription of its definition: the merge, the walk, the threshold."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from elder.errors import UserError
from elder.model.layers import LayerControl, find_layers, remove_layers
from elder.model.load import weights_digest
from elder.selection import get_method
from elder.selection.laco import Walk as W
from elder.selection.laco import collapse, collapsed, merged_weights, runs
from tests.elder.selection.problems import literal_states, problem

# --- the merge ---


def test_merged_weights_by_hand() -> None:
    base = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    first = {
        "w": torch.tensor([[2.0, 2.0], [2.0, 2.0]])
    }  # differs by [[1, 0], [-1, -2]]
    second = {
        "w": torch.tensor([[0.0, 1.0], [5.0, 10.0]])
    }  # differs by [[-1, -1], [2, 6]]
    # the differences sum to [[0, -1], [1, 4]]; differences to a base that moves on would give ``second`` itself
    assert merged_weights(base, [first, second])["w"].tolist() == [
        [1.0, 1.0],
        [4.0, 8.0],
    ]
    assert merged_weights(base, [first])["w"].tolist() == first["w"].tolist()
    assert base["w"].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_merged_weights_are_summed_in_float32() -> None:
    base, other = (
        torch.tensor([value], dtype=torch.bfloat16) for value in (200.0, 0.5)
    )
    # 200 - 199.5 - 199.5 = -199; bfloat16 cannot hold 199.5 and would give 200 - 200 - 200 = -200
    merged = merged_weights({"w": base}, [{"w": other}, {"w": other}])["w"]
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [-199.0]


def test_runs_of_removed_layers_follow_the_layer_that_takes_them_in() -> None:
    assert runs(frozenset({5, 2, 1, 7, 8})) == {0: [1, 2], 4: [5], 6: [7, 8]}


def test_a_failure_while_collapsed_leaves_the_model_as_it_was(trained: Any) -> None:
    before = weights_digest(trained)
    during = []

    def fail(control: LayerControl) -> None:
        with collapsed(control, frozenset({2, 3})):
            during.append(weights_digest(trained))
            raise RuntimeError("cut")

    with (
        LayerControl(find_layers(trained)) as control,
        pytest.raises(RuntimeError, match="cut"),
    ):
        fail(control)
    assert during != [before]
    assert weights_digest(trained) == before


# --- the walk and the threshold ---


def accept(_: frozenset[int]) -> float:
    return 0.9


@pytest.mark.parametrize(
    ("walk", "wanted", "taken"),
    [
        # at 12 - 4 = 8: 9-11 go; 6 has but 2 layers above, so at 9 - 4 = 5: 6-8 go; at 6 - 4 = 2: two are left to go
        (
            W(merge=4, lowest=1, highest=12, interval=2),
            8,
            [(9, 10, 11), (6, 7, 8), (3, 4)],
        ),
        # at 8; at 8 - 4 = 4: 5-7 go; 4 - 4 = 0 is below the lowest
        (W(merge=4, lowest=1, highest=12, interval=4), 8, [(9, 10, 11), (5, 6, 7)]),
        # at 7 - 3 = 4: 5 and 6 go; at 4 - 3 = 1: 2 and 3 go
        (W(merge=3, lowest=0, highest=7, interval=3), 4, [(5, 6), (2, 3)]),
    ],
)
def test_the_walk_by_hand(walk: W, wanted: int, taken: list[tuple[int, ...]]) -> None:
    merges = collapse(walk, lambda _, __: True, wanted, accept, 0.5)
    assert [layers for layers, _ in merges] == taken
    # above, not at, the threshold
    assert collapse(walk, lambda _, __: True, wanted, accept, 0.9) == []


def test_a_merge_that_fails_is_tried_one_layer_lower_and_one_may_take_in_another() -> (
    None
):
    asked: list[list[int]] = []

    def similarity(removed: frozenset[int]) -> float:
        asked.append(sorted(removed))
        return 0.0 if removed == {4, 5} else 1.0

    # at 6 - 3 = 3 it fails; at 2, layers 3 and 4 go; at 1, 2 (with what it took in) and 5 go
    merges = collapse(
        W(merge=3, lowest=0, highest=6, interval=1),
        lambda _, __: True,
        4,
        similarity,
        0.5,
    )
    assert merges == [((3, 4), 1.0), ((2, 5), 1.0)]
    assert asked == [[4, 5], [3, 4], [2, 3, 4, 5]]


@torch.no_grad()
def literal_similarity(
    model: Any, blocks: torch.Tensor, groups: dict[int, list[int]]
) -> float:
    """Merge each group into its layer, tensor by tensor, take the others out for good, and compare block by block."""
    cut = copy.deepcopy(model)
    for base, others in groups.items():
        for name, weight in find_layers(cut)[base].named_parameters():
            original = find_layers(model)[base].get_parameter(name)
            for index in others:
                weight += find_layers(model)[index].get_parameter(name) - original
    remove_layers(cut, [index for others in groups.values() for index in others])
    cosines = []
    for ids in blocks:
        a, b = (
            literal_states(model, ids)[-1].double(),
            literal_states(cut, ids)[-1].double(),
        )
        cosines.append((a @ b / (a.norm() * b.norm())).item())
    return sum(cosines) / len(cosines)


def literal_walk(
    similarity: Callable[..., float],
    merge: int,
    interval: int,
    count: int,
    threshold: float,
    protect: tuple[int, ...],
) -> list[tuple[list[int], float]]:
    """Go down the layers as the paper's algorithm does; stop when ``count`` layers are gone."""
    groups: dict[int, list[int]] = {
        index: [] for index in range(6)
    }  # each kept layer, and what it took in
    found: list[tuple[list[int], float]] = []
    at = len(groups) - merge
    while at >= 1:
        room = count - (6 - len(groups))
        if room == 0:
            break
        kept = sorted(groups)
        others = kept[at + 1 : at + 1 + min(merge - 1, room)]
        while any(index in protect for index in others):
            others = others[:-1]
        trial = {
            index: members for index, members in groups.items() if index not in others
        }
        trial[kept[at]] = (
            groups[kept[at]] + others + [i for index in others for i in groups[index]]
        )
        value = (
            similarity({base: members for base, members in trial.items() if members})
            if others
            else -2.0
        )
        if value > threshold:
            groups = trial
            found.append((others, value))
            at = min(at - interval, len(groups) - merge)
        else:
            at -= 1
    return found


@pytest.mark.parametrize(
    ("merge", "interval", "count", "protect"),
    [(3, 2, 3, ()), (3, 1, 2, ()), (2, 1, 3, ()), (2, 1, 2, (4,)), (4, 2, 2, ())],
)
def test_laco_equals_its_literal_transcription(
    trained: Any,
    sample: torch.Tensor,
    merge: int,
    interval: int,
    count: int,
    protect: tuple[int, ...],
) -> None:
    # a walk changes only where the threshold reaches the lowest similarity that it accepted: so these are all walks
    known: dict[str, float] = {}

    def similarity(groups: dict[int, list[int]]) -> float:
        if str(groups) not in known:
            known[str(groups)] = literal_similarity(trained, sample[:5], groups)
        return known[str(groups)]

    walks = []
    threshold = -2.0
    while merges := literal_walk(
        similarity, merge, interval, count, threshold, protect
    ):
        walks.append(merges)
        threshold = min(value for _, value in merges)
    gone = [*(sum(len(others) for others, _ in merges) for merges in walks), 0]
    # exactly ``count`` layers go, and fewer at the next higher threshold; there may be several such walks
    allowed = [
        merges
        for number, merges in enumerate(walks)
        if gone[number] == count > gone[number + 1]
    ]
    settings = {"merge_layers": merge, "merge_interval": interval, "merge_samples": 5}
    found = get_method("laco")(problem(trained, sample, count, protect, **settings))
    layers = [list(one.removed) for one in found.rounds]
    expected = next(
        merges for merges in allowed if [others for others, _ in merges] == layers
    )
    for one, (others, value) in zip(found.rounds, expected, strict=True):
        assert [one.values[index] for index in others] == pytest.approx(
            [1 - value] * len(others), abs=1e-5
        )
        assert sum(score is not None for score in one.values) == len(others)
    assert found.tokens_seen == found.optimizer_steps == 0


def test_laco_can_take_out_all_layers_but_the_first(
    trained: Any, sample: torch.Tensor, capsys: Any
) -> None:
    found = get_method("laco")(problem(trained, sample, 5))
    assert sorted(found.removed) == [1, 2, 3, 4, 5]
    assert "it goes on with 2 at a time, interval 1, down to layer 0" in " ".join(
        capsys.readouterr().err.split()
    )


def test_laco_refuses_what_no_merge_can_reach(
    trained: Any, sample: torch.Tensor
) -> None:
    with pytest.raises(
        UserError, match=r"merge_range \[1, 7\] does not fit 6 layers; give \[L, H\]"
    ):
        get_method("laco")(problem(trained, sample, 1, merge_range=(1, 7)))
    with pytest.raises(
        UserError, match=r"cannot take out 3 of 6 layers by merges within \[2, 5\)"
    ):
        get_method("laco")(problem(trained, sample, 3, merge_range=(2, 5)))
    assert sorted(
        get_method("laco")(problem(trained, sample, 2, merge_range=(2, 5))).removed
    ) == [3, 4]
