"""Selection methods against slow, literal transcriptions, and what all of them have in common."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from elder import params
from elder.compression.recipes import apply_method
from elder.compression.stages import layers_to_remove
from elder.errors import UserError
from elder.fingerprint import recipe_of
from elder.model.forward import block_losses, next_token_losses
from elder.model.layers import LayerControl, find_layers, remove_layers, skipping
from elder.model.load import weights_digest
from elder.params import Params
from elder.record import plain
from elder.selection import METHODS, Problem, get_method
from elder.selection.base import lowest, register
from elder.selection.layer_weights import LAMBDA1_GRID, LayerWeightSolver, soft_threshold

FAST = {
    "elder": {"lambda1": 0.05, "epochs": 1.0, "batch": 4, "shortlist": 1},
    "shortened-taylor": {"batch": 4},
}


def problem(
    model: Any,
    blocks: torch.Tensor,
    count: int = 2,
    protect: tuple[int, ...] = (),
    method: str = "elder",
    **changes: Any,
) -> Problem[Any]:
    settings = METHODS[method].settings(**(FAST.get(method, {}) | changes))
    return Problem(model, blocks, count, frozenset(protect), settings, 0, forward_batch=8)


@pytest.fixture
def sample(text_blocks: torch.Tensor) -> torch.Tensor:
    """Ten blocks of the novel: no whole number of batches of four."""
    return text_blocks[::20][:10]


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
    found = get_method("sleb")(problem(trained, sample, 3))
    assert list(found.removed) == gone
    for one, expected in zip(found.rounds, rounds, strict=True):
        assert {
            i: value for i, value in enumerate(one.values) if value is not None
        } == pytest.approx(expected, abs=1e-5)
        assert one.values[0] is None
        assert one.values[5] is None


# --- elder ---


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
    ten = problem(
        model, blocks, 1, place=place, batch=10, epochs=1.0
    )  # all ten blocks in the one step
    get_method("elder")(ten)
    expected = []
    with torch.no_grad(), LayerControl(find_layers(model)) as control:
        control.place = place
        for layer in range(3):
            losses = []
            for eps in (1e-2, -1e-2):
                control.weights = torch.ones(3)
                control.weights[layer] += eps
                losses.append(
                    model(blocks, labels=blocks).loss.item()
                )  # the mean over all positions
            expected.append((losses[0] - losses[1]) / 2e-2)
    assert len(seen) == 1
    assert seen[0].tolist() == pytest.approx(expected, rel=0.02, abs=1e-3)
    assert max(map(abs, expected)) > 0.02


def test_the_loss_is_the_mean_over_all_positions_of_a_block() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]]))
    ids = torch.tensor([[0, 1, 0]])
    # position 0 foretells token 1 with 0.5, position 1 foretells token 0 with 0.25; the last one foretells nothing
    expected = -(torch.tensor(0.5).log() + torch.tensor(0.25).log()) / 2
    assert next_token_losses(logits, ids).tolist() == pytest.approx([expected.item()])


def test_soft_threshold_by_hand() -> None:
    values = torch.tensor([3.0, -2.0, 0.5, -0.5, 0.0])
    assert soft_threshold(values, 1.0).tolist() == [2.0, -1.0, 0.0, 0.0, 0.0]
    assert soft_threshold(values, torch.tensor([0.0, 3.0, 0.25, 0.25, 1.0])).tolist() == [
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


def test_of_a_shortlist_the_least_missed_layer_goes(
    trained: Any, sample: torch.Tensor
) -> None:
    found = get_method("elder")(problem(trained, sample, 2, shortlist=3))
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
    assert (
        found.tokens_seen == get_method("elder")(problem(trained, sample, 2)).tokens_seen
    )  # looking is no training


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
    found = get_method("elder")(
        problem(trained, sample, 2, lambda1="auto", epochs=6.0)
    )  # 2 a trial, 1 a round
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


# --- all methods ---


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_what_is_protected_and_repeats_itself(
    name: str, trained: Any, sample: torch.Tensor
) -> None:
    before = weights_digest(trained)
    first, second = (
        get_method(name)(problem(trained, sample, 2, (2, 3), name)) for _ in range(2)
    )
    assert first == second
    assert len(set(first.removed)) == 2
    assert set(first.removed) <= {0, 1, 4, 5}
    assert all(one.values[index] is None for one in first.rounds for index in (2, 3))
    assert tuple(i for one in first.rounds for i in one.removed) == first.removed
    assert weights_digest(trained) == before
    assert not any("forward" in vars(layer) for layer in find_layers(trained))


@pytest.mark.parametrize("name", METHODS)
def test_too_much_protection_is_refused(
    name: str, trained: Any, sample: torch.Tensor
) -> None:
    with pytest.raises(UserError, match="3 layers should go, but with .* protected"):
        get_method(name)(problem(trained, sample, 3, (0, 1, 2, 3), name))


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(
        UserError, match="no selection method 'shortgtp'; did you mean 'shortgpt'?"
    ):
        get_method("shortgtp")
    with pytest.raises(UserError, match="no method 'slebb'; did you mean 'sleb'?"):
        apply_method(Params(), "slebb")


def test_two_methods_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="'sleb' is registered already"):
        register("sleb")(get_method("sleb"))


def test_the_lowest_come_first_and_of_equals_the_first() -> None:
    assert lowest([3.0, None, 1.0, 2.0, 1.0], 3) == (2, 4, 3)


# --- recipes ---


def test_elder_as_published() -> None:
    made = apply_method(Params(), "elder")
    learning = made.select.settings_of("elder")
    assert (made.select.method, learning.place, learning.iterative) == (
        "elder",
        "output",
        True,
    )
    assert (learning.lambda1, made.regularise.lambda2, made.regularise.lr) == (
        5e-3,
        1e-3,
        2e-5,
    )
    assert (made.regularise.epochs, made.regularise.norm, made.regularise.relative) == (
        3,
        "l2",
        False,
    )
    assert made.regularise.warmup == 0.03
    assert made.recover.mode == "none"


def test_a_baseline_trains_nothing_and_the_default_is_what_is_set() -> None:
    made = apply_method(Params(), "shortgpt")
    assert (made.select.method, made.regularise.epochs, made.recover.mode) == (
        "shortgpt",
        0,
        "none",
    )
    assert apply_method(Params(), None) == apply_method(Params(), "default") == Params()
    assert set(recipe_of(made)) == {"select", "regularise", "compensate", "recover"}


# --- how many layers ---


@pytest.mark.parametrize(
    ("asked", "count"),
    [({"ratio": 0.25}, 3), ({"layers": 5, "ratio": 0.1}, 5), ({"ratio": 0.3}, 4)],
)
def test_layers_win_over_the_ratio_which_is_rounded(
    asked: dict[str, Any], count: int
) -> None:
    assert layers_to_remove(params.Select(**asked), 12) == count


@pytest.mark.parametrize(
    "asked", [{"ratio": 0.01}, {"ratio": 0.99}, {"layers": 12}, {"layers": 13}]
)
def test_none_or_all_layers_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="remove 1 to 11 of them"):
        layers_to_remove(params.Select(**asked), 12)


def test_a_protected_layer_must_exist() -> None:
    with pytest.raises(
        UserError, match="cannot protect layer 12: the model has layers 0 to 11"
    ):
        layers_to_remove(params.Select(protect=(0, 12)), 12)
