"""The method ``elder-authors``: against the authors' rounds written out, and the layers that never go."""

import copy
from typing import Any

import pytest
import torch

from elder import params
from elder.compression.recipes import apply_method
from elder.data import batch_indices
from elder.errors import UserError
from elder.model.layers import find_layers
from elder.params import Params
from elder.selection import get_method
from tests.elder.selection.problems import quick_problem as problem


def test_rounds_written_out_choose_the_same(trained: Any, sample: torch.Tensor) -> None:
    # ten blocks, four in a step, two passes: five steps, two of them in the first round; layers 1 to 4 may go
    settings = {"epochs": 2.0, "first": 1, "last": 1, "lr": 0.01, "lambda1": 0.5}
    found = get_method("elder-authors")(
        problem(trained, sample, 2, method="elder-authors", **settings)
    )
    model = copy.deepcopy(trained).requires_grad_(True)
    layers = find_layers(model)
    weights = torch.ones(6, requires_grad=True)
    gone: set[int] = set()

    def scaled(index: int) -> Any:
        def hook(_: Any, given: Any, output: Any) -> Any:
            return given[0] if index in gone else weights[index] * output

        return hook

    for index, layer in enumerate(layers):
        layer.register_forward_hook(scaled(index))
    optimizer = torch.optim.AdamW([*model.parameters(), weights], weight_decay=0)
    rounds = []
    for step in range(5):
        ids = sample[batch_indices(10, 4, step, 0)]
        alive = [index for index in range(6) if index not in gone]
        loss = model(input_ids=ids, labels=ids).loss
        (loss + 0.5 * weights[alive].abs().sum()).backward()
        # no step of warm-up but the first; from there down to 0 after the last
        optimizer.param_groups[0]["lr"] = 0.01 * min(step + 1, (5 - step) / 5)
        optimizer.step()
        optimizer.zero_grad()
        if step in (1, 4):
            now = weights.tolist()
            values = [
                now[index] if index in alive and 0 < index < 5 else None
                for index in range(6)
            ]
            lightest = min((v, i) for i, v in enumerate(values) if v is not None)[1]
            rounds.append((lightest, values))
            gone.add(lightest)
    assert found.removed == tuple(lightest for lightest, _ in rounds)
    for one, (_, values) in zip(found.rounds, rounds, strict=True):
        assert [v is None for v in one.values] == [v is None for v in values]
        assert [v for v in one.values if v is not None] == pytest.approx(
            [v for v in values if v is not None], abs=1e-5
        )
    assert (found.optimizer_steps, found.tokens_seen) == (5, 5 * 4 * sample.shape[1])
    assert found.learnt


def test_the_ends_never_go(trained: Any, sample: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"with \[0, 1, 2, 3, 4, 5\] protected only 0"):
        get_method("elder-authors")(
            problem(trained, sample, 1, method="elder-authors", first=3, last=4)
        )


def test_its_recipe_is_the_codes() -> None:
    made = apply_method(Params(), "elder-authors")
    learning = made.select.settings_of("elder-authors")
    assert (learning.first, learning.last, learning.lambda1) == (3, 4, 100)
    assert made.regularise == params.Regularise(
        one_by_one=True,
        optimizer="adamw",
        epochs=3,
        batch=4,
        lr=2e-5,
        lambda2=4.5e-3,  # 1e-4 x 2048 ** 0.5
    )
    assert made.recover.mode == "none"
