"""What all selection methods have in common, the recipes that name them, and how many layers they are asked for."""

from typing import Any

import pytest
import torch

from elder import params
from elder.compression.layers import layers_to_remove
from elder.compression.recipes import apply_method
from elder.errors import UserError
from elder.fingerprint import recipe_of
from elder.model.layers import find_layers
from elder.model.load import weights_digest
from elder.params import Params
from elder.selection import METHODS, get_method
from elder.selection.base import lowest, register
from tests.elder.selection.problems import quick_problem as problem

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


@pytest.mark.parametrize("name", ["shortgpt", "angular", "laco"])
def test_where_states_say_all_no_logits_are_made(
    name: str, trained: Any, sample: torch.Tensor
) -> None:
    trained.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    assert len(get_method(name)(problem(trained, sample, 2, (), name)).removed) == 2


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
