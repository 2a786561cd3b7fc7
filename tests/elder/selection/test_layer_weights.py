"""The method ``elder``: its gradient, its solvers by hand, its rounds, and the weight of its penalty."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from elder.errors import UserError
from elder.model.forward import block_losses
from elder.model.layers import LayerControl, find_layers, remove_layers, skipping
from elder.record import plain
from elder.selection import get_method
from elder.selection.layer_weights import (
    LAMBDA1_GRID,
    MOST_WRITTEN,
    LayerWeightSettings,
    LayerWeightSolver,
    learn_round,
    shortlist,
    soft_threshold,
)
from tests.elder.selection.problems import quick_problem as problem


@pytest.mark.parametrize("place", ["residual", "output"])
def test_the_gradient_of_a_layer_weight_is_that_of_the_loss_over_all_positions(
    llama: Callable, blocks: torch.Tensor, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    model = llama(3)
    seen: list[torch.Tensor] = []
    real = LayerWeightSolver.step
    monkeypatch.setattr(
        LayerWeightSolver,
        "step",
        lambda self, g: (seen.append(g.clone()), real(self, g))[1],
    )
    # all ten blocks in the one step
    ten = problem(model, blocks, 1, place=place, batch=10, epochs=1.0)
    get_method("elder")(ten)
    expected = []
    with torch.no_grad(), LayerControl(find_layers(model)) as control:
        control.place = place
        for layer in range(3):
            losses = []
            for eps in (1e-2, -1e-2):
                control.weights = torch.ones(3)
                control.weights[layer] += eps
                # the mean over all positions
                losses.append(model(blocks, labels=blocks).loss.item())
            expected.append((losses[0] - losses[1]) / 2e-2)
    assert len(seen) == 1
    assert seen[0].tolist() == pytest.approx(expected, rel=0.02, abs=1e-3)
    assert max(map(abs, expected)) > 0.02


def test_soft_threshold_by_hand() -> None:
    values = torch.tensor([3.0, -2.0, 0.5, -0.5, 0.0])
    assert soft_threshold(values, 1.0).tolist() == [2.0, -1.0, 0.0, 0.0, 0.0]
    assert soft_threshold(
        values, torch.tensor([0.0, 3.0, 0.25, 0.25, 1.0])
    ).tolist() == [
        3.0,
        0.0,
        0.25,
        -0.25,
        0.0,
    ]


@pytest.mark.parametrize("proximal", [True, False])
def test_both_solvers_reach_the_minimum_found_by_hand(proximal: bool) -> None:
    # (s - 1)^2 / 2 + 0.3 |s| is least at s = 0.7, and (s - 0.2)^2 / 2 + 0.3 |s| at s = 0
    weights, target = torch.ones(2), torch.tensor([1.0, 0.2])
    solver = LayerWeightSolver(weights, 0.01, 0.3, proximal)
    for _ in range(1500):
        solver.step(weights - target)
    assert weights.tolist() == pytest.approx([0.7, 0.0], abs=0.02)
    assert (weights[1].item() == 0.0) == proximal


@pytest.mark.parametrize(
    ("solver", "reaches"), [("proximal", True), ("subgradient", False)]
)
def test_only_the_proximal_step_reaches_0_exactly(
    trained: Any, sample: torch.Tensor, solver: str, reaches: bool
) -> None:
    found = get_method("elder")(
        problem(trained, sample, 1, solver=solver, lambda1=100.0, epochs=4.0, lr=0.2)
    )
    assert (0.0 in found.rounds[0].values) == reaches


def test_iterative_learns_from_1_in_each_round_with_the_chosen_bypassed(
    trained: Any, sample: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[list[float]] = []
    real = LayerWeightSolver.__init__

    def spy(
        self: LayerWeightSolver, weights: torch.Tensor, *rest: Any, **options: Any
    ) -> None:
        starts.append(weights.tolist())
        real(self, weights, *rest, **options)

    monkeypatch.setattr(LayerWeightSolver, "__init__", spy)
    found = get_method("elder")(problem(trained, sample, 3, epochs=3.0))
    assert starts == [[1.0] * 6] * 3
    assert len(set(found.removed)) == len(found.rounds) == 3
    for number, one in enumerate(found.rounds):
        assert [i for i, value in enumerate(one.values) if value is None] == sorted(
            found.removed[:number]
        )
        offered = {i: value for i, value in enumerate(one.values) if value is not None}
        assert (
            one.removed
            == (min(offered, key=lambda i: offered[i]),)
            == (found.removed[number],)
        )
    # round(3.0 / 3 rounds x 10 blocks / 4) = 2 steps a round, of 4 blocks of 48 tokens
    assert (found.optimizer_steps, found.tokens_seen) == (6, 6 * 4 * 48)


def test_a_later_round_is_a_first_round_without_the_chosen_layers(
    trained: Any, sample: torch.Tensor
) -> None:
    first, second = get_method("elder")(problem(trained, sample, 2, epochs=2.0)).rounds
    remove_layers(trained, first.removed)
    alone = get_method("elder")(replace(problem(trained, sample, 1), seed=1)).rounds[
        0
    ]  # round 2 has seed 0 + 1
    assert [value for value in second.values if value is not None] == pytest.approx(
        alone.values, abs=1e-5
    )


def test_no_step_of_a_threshold_is_longer_than_the_rate() -> None:
    weights = torch.ones(2)
    solver = LayerWeightSolver(weights, 0.05, 0.3, proximal=True)
    solver.step(torch.tensor([1e-9, -1e-9]))  # the loss feels neither weight
    # 0.05 / (1e-9 + 1e-8 + 0.3) x 0.3 = 0.05
    assert weights.tolist() == pytest.approx([0.95, 0.95], abs=1e-6)


def test_learning_ends_at_its_first_loss_that_is_not_finite(
    trained: Any, sample: torch.Tensor
) -> None:
    steps: list[str] = []
    trained.model.norm.weight.data[0] = torch.nan
    with (
        LayerControl(find_layers(trained)) as control,
        pytest.raises(
            UserError, match="loss from which layer weights are learnt is nan"
        ),
    ):
        learn_round(problem(trained, sample), control, sample, 0.1, 3, 0, steps.append)
    assert steps == []


def test_of_a_shortlist_the_least_missed_layer_goes(
    trained: Any, sample: torch.Tensor
) -> None:
    listed = problem(trained, sample, 2, shortlist=3, runners_up=0, racing=None)
    found = get_method("elder")(listed)
    gone: list[int] = []
    for one in found.rounds:
        weights = {i: value for i, value in enumerate(one.values) if value is not None}
        inner = [
            layer for layer in weights if layer not in (0, 5)
        ]  # as SLEB, it never looks at the ends
        assert [layer for layer, _ in one.checked] == sorted(
            inner, key=lambda i: weights[i]
        )[:3]
        for layer, loss in one.checked:
            with skipping(trained, [*gone, layer]):
                assert loss == pytest.approx(
                    block_losses(trained, sample, 4).mean().item(), abs=1e-5
                )
        assert one.removed == (min(one.checked, key=lambda pair: pair[1])[0],)
        gone.extend(one.removed)
    # looking is no training
    assert (
        found.tokens_seen
        == get_method("elder")(problem(trained, sample, 2)).tokens_seen
    )


def test_runners_up_are_tried_again_beside_the_lightest_of_the_others(
    trained: Any, sample: torch.Tensor
) -> None:
    changes = {"shortlist": 2, "runners_up": 1, "racing": None}
    first, second = get_method("elder")(problem(trained, sample, 2, **changes)).rounds
    lost = dict(first.checked)
    assert set(lost) == {1, 2, 3, 4}  # all but the ends
    gone, next_best, *_ = sorted(lost, key=lambda layer: lost[layer])
    assert first.removed == (gone,)
    others = {1, 2, 3, 4} - {gone, next_best}
    assert {layer for layer, _ in second.checked} == {next_best, *others}
    weights = (0.0, 0.5, 0.2, 0.4, None, 0.1, 0.3, 0.0)
    settings = LayerWeightSettings(**changes)
    assert shortlist(settings, weights, {4: 1.0, 3: 2.0, 5: 3.0}) == [3, 5, 2]


def test_layers_are_tried_on_what_the_model_writes(
    trained: Any, sample: torch.Tensor
) -> None:
    other = sample.flip(1)
    asked: list[int] = []

    def write(count: int) -> torch.Tensor:
        asked.append(count)
        return other[:count]

    listed = problem(trained, sample, 2, shortlist=2, racing=None)
    found = get_method("elder")(replace(listed, write=write))
    assert asked == [len(sample)]  # as many as of calibration, of which there are few
    assert found.tokens_generated == other.numel()
    for layer, loss in found.rounds[0].checked:
        with skipping(trained, [layer]):
            expected = block_losses(trained, other, 4).mean().item()
        assert loss == pytest.approx(expected, abs=1e-5)
    plain_one = get_method("elder")(listed)
    assert (
        found.rounds[0].values == plain_one.rounds[0].values
    )  # weights are learnt on calibration text
    assert plain_one.tokens_generated == 0
    for settings in (
        {"written": 0},
        {"shortlist": 1, "runners_up": 0},
        {"iterative": False},
    ):
        got = problem(trained, sample, 2, **{"shortlist": 2} | settings)
        get_method("elder")(replace(got, write=write))
    assert len(asked) == 1
    assert LayerWeightSettings().blocks_written(200) == MOST_WRITTEN
    assert LayerWeightSettings(written=3).blocks_written(200) == 3


def test_the_ends_go_where_nothing_else_may(trained: Any, sample: torch.Tensor) -> None:
    found = get_method("elder")(
        problem(trained, sample, 2, protect=(1, 2, 3, 4), shortlist=3)
    )
    assert set(found.removed) == {0, 5}


def test_one_shot_is_a_single_round(trained: Any, sample: torch.Tensor) -> None:
    found = get_method("elder")(problem(trained, sample, 3, iterative=False))
    assert len(found.rounds) == 1
    values = found.rounds[0].values
    assert list(found.removed) == sorted(range(6), key=lambda i: values[i])[:3]
    assert found.optimizer_steps == 2


def test_an_automatic_lambda1_is_the_best_on_held_out_blocks(
    trained: Any, sample: torch.Tensor
) -> None:
    # 2 a trial, 1 a round
    found = get_method("elder")(problem(trained, sample, 2, lambda1="auto", epochs=6.0))
    assert [plain(trial)["lambda1"] for trial in found.search] == list(LAMBDA1_GRID)
    losses = [trial.held_out_loss for trial in found.search]
    assert [trial.chosen for trial in found.search] == [
        i == losses.index(min(losses)) for i in range(3)
    ]
    assert (
        found.tokens_seen
        == sum(trial.tokens for trial in found.search)
        == 3 * 2 * 2 * 4 * 48
    )
    best = LAMBDA1_GRID[losses.index(min(losses))]
    assert (
        found.removed
        == get_method("elder")(
            problem(trained, sample[:-1], 2, lambda1=best, epochs=2.0)
        ).removed
    )
