"""Which layer is missed the least: by all blocks with nothing run twice, and by a race over some of them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from elder.compression import layers
from elder.model.forward import block_losses
from elder.model.layers import LayerControl, find_layers, skipping
from elder.record import Scores, plain
from elder.selection import METHODS, get_method, trials
from elder.selection.candidates import candidate_losses
from elder.selection.trials import Trials, loses, survivors, upper_tail
from tests.elder.selection.problems import problem


def test_a_candidate_takes_the_layers_after_it_and_one_head(
    trained: Any, sample: torch.Tensor
) -> None:
    ran: list[str] = []
    for index, layer in enumerate(trained.model.layers):
        layer.self_attn.register_forward_hook(
            lambda *_, name=str(index): ran.append(name)
        )
    trained.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    with torch.no_grad(), LayerControl(find_layers(trained)) as control:
        # the first layer that is ever bypassed runs once, to show what it puts out
        candidate_losses(trained, control, [3], {2}, sample[:1])
        ran.clear()
        found = candidate_losses(trained, control, [4, 1, 3], {2}, sample[:4])
    # without 4: all but 2 and 4; without 1, what comes after it but 2; without 3, what comes after it
    assert ran == [*"0135", "head", *"345", "head", *"45", "head"]
    for layer, losses in found.items():
        with skipping(trained, [2, layer]):
            expected = block_losses(trained, sample[:4], 4)
        assert torch.allclose(losses, expected, rtol=0, atol=1e-5)


# --- what a comparison says ---


@pytest.mark.parametrize(
    ("t", "degrees", "tail"),  # from tables of Student's t
    [
        (0.0, 5, 0.5),
        (6.314, 1, 0.05),
        (2.920, 2, 0.05),
        (2.353, 3, 0.05),
        (2.365, 7, 0.025),
        (3.499, 7, 0.005),
        (4.025, 11, 0.001),
        (3.090, 10**4, 0.001),
    ],
)
def test_the_tail_of_student_is_that_of_the_tables(
    t: float, degrees: int, tail: float
) -> None:
    assert upper_tail(t, degrees) == pytest.approx(tail, rel=5e-3)


def test_a_difference_is_judged_by_hand() -> None:
    apart = torch.tensor([1.0, 3.0, 1.0, 3.0], dtype=torch.float64)
    # mean 2, sd sqrt(4/3), of 4 in 16 blocks: 2 / (1.1547 / 2 x sqrt(3/4)) = 4; P(T3 > 4) = 0.0140
    assert loses(apart, 16, 0.0141)
    assert not loses(apart, 16, 0.0139)
    # nearly all blocks seen: nothing is left to chance
    assert loses(apart, 5, 0.005)
    assert not loses(-apart, 16, 0.5)
    assert loses(torch.ones(4).double(), 16, 1e-9)
    assert not loses(torch.zeros(4).double(), 16, 0.5)
    losses = {7: 4 + apart, 3: torch.full((4,), 4.0).double(), 5: 4 + apart / 1000}
    assert survivors(losses, 16, 0.0141) == [3]
    assert survivors(losses, 16, 0.0139) == [7, 3, 5]


# --- races ---

Table = dict[int, torch.Tensor]  # the loss of each block without each layer


def race(
    table: Table, confidence: float | None, seed: int, monkeypatch: Any
) -> tuple[Trials, trials.Tried]:
    """Try the layers of a table: the blocks are their own numbers, and no model is run."""
    count = len(next(iter(table.values())))

    def look_up(_: Any, __: Any, layers: list[int], ___: Any, ids: torch.Tensor) -> Any:
        return {layer: table[layer][ids[:, 0]] for layer in layers}

    monkeypatch.setattr(trials, "candidate_losses", look_up)
    asked = problem(None, torch.arange(count)[:, None], 1, seed=seed)
    tries = Trials(asked, Mockless(), asked.blocks, confidence)
    return tries, tries(list(table), set())


class Mockless(LayerControl):
    """A control of no layers."""

    def __init__(self) -> None:
        super().__init__(torch.nn.ModuleList())


def drawn(seed: int) -> Table:
    """Draw the losses of six layers on 128 blocks: what blocks share is large, what tells layers apart is small."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(128, generator=generator)
    table = {}
    for layer in range(1, 7):
        own = 0.02 * layer + 0.1 * torch.randn(128, generator=generator)
        table[layer] = (4 + shared + own).double()
    return table


def test_a_race_chooses_as_all_blocks_do_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missed = hasty = run = whole = 0
    for seed in range(300):
        table = drawn(seed)
        tries, tried = race(table, 0.9, seed, monkeypatch)
        best = min(table, key=lambda layer: table[layer].mean().item())
        missed += tried.least_missed != best
        run, whole = run + tries.run, whole + tries.whole
        first = tries._order(0)[:8]
        hasty += min(table, key=lambda layer: table[layer][first].mean().item()) != best
    assert whole == 300 * 6 * 128
    assert missed <= 30  # of 300, a tenth
    assert hasty > 60  # the first blocks alone mislead
    assert run < 0.7 * whole


def test_what_left_a_race_is_told_as_if_it_had_stayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = drawn(0)
    table[6] = table[1] + 1 + 1e-3 * table[2]  # leaves at the first look
    tries, tried = race(table, 0.99, 0, monkeypatch)
    assert tried.blocks[6] == 8
    assert dict(tried.run) == tried.blocks
    assert sum(tried.blocks.values()) == tries.run < tries.whole
    best = tried.least_missed
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    seen = {layer: table[layer][order[:n]] for layer, n in tried.blocks.items()}
    for layer, losses in seen.items():
        apart = losses - seen[best][: len(losses)]
        expected = (seen[best].mean() + apart.mean()).item()
        assert tried.losses[layer] == pytest.approx(expected, abs=1e-12)
    assert "with confidence 0.99 the choice is that of all blocks" in tries.told()


def test_a_race_that_is_over_at_once_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries, tried = race({3: torch.ones(128), 2: torch.zeros(128)}, 0.9, 0, monkeypatch)
    assert tried.least_missed == 2
    assert tried.run == ((3, 8), (2, 8))
    assert (tries.run, tries.whole) == (16, 256)


def test_without_a_confidence_all_see_all_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = drawn(1)
    tries, tried = race(table, None, 0, monkeypatch)
    assert tries.run == tries.whole == 6 * 128
    assert tried.run == ()
    for layer, losses in table.items():
        assert tried.losses[layer] == pytest.approx(losses.mean().item(), abs=1e-12)


@pytest.mark.parametrize("method", ["sleb", "elder"])
def test_a_race_on_a_model_chooses_the_same_layers_for_less(
    method: str,
    trained: Any,
    text_blocks: torch.Tensor,
    capsys: pytest.CaptureFixture,
) -> None:
    quick: dict[str, Any] = (
        {"epochs": 0.2, "batch": 4, "shortlist": 4} if method == "elder" else {}
    )
    ask: Callable = get_method(method)
    blocks = text_blocks[:64, :24]
    whole = ask(problem(trained, blocks, 2, method=method, racing=None, **quick))
    raced = ask(problem(trained, blocks, 2, method=method, racing=0.95, **quick))
    assert raced.removed == whole.removed
    assert not any(one.blocks for one in whole.rounds)
    assert any(one.blocks for one in raced.rounds)
    told = plain(layers._scores(raced))["rounds"]
    again = Scores.model_validate_json(json.dumps({"rounds": told}))
    assert [tuple(one.blocks) for one in again.rounds] == [
        one.blocks for one in raced.rounds
    ]
    for one, full in zip(raced.rounds, whole.rounds, strict=True):
        tried = dict(one.checked) if method == "elder" else dict(enumerate(one.values))
        known = (
            dict(full.checked) if method == "elder" else dict(enumerate(full.values))
        )
        assert tried.keys() == known.keys()
        for layer, count in one.blocks:
            assert 8 <= count <= 64
            assert tried[layer] == pytest.approx(known[layer], abs=0.3)
    assert "block evaluations" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["sleb", "elder"])
@pytest.mark.parametrize("confidence", [1.0, 0.4, 95])
def test_a_confidence_is_a_share(method: str, confidence: float) -> None:
    with pytest.raises(ValidationError, match="racing"):
        METHODS[method].settings(racing=confidence)
