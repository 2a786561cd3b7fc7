"""The table by hand: order, ties, the gap closed, equal budget, means over seeds; and its three formats."""

import csv
import io
import json
import math
from typing import Any

import numpy as np
import pytest

from elder.compare.marks import tie
from elder.compare.result import Result
from elder.compare.table import TableRow, build
from elder.compare.write import csv_text, flat, markdown, title

# spread of a text: some blocks are harder than others
BLOCKS = np.array([0.0, 0.1, 0.2, 0.3])


def result(name: str, nll: float, seed: int = 0, spent: int = 0, **more: Any) -> Result:
    losses = nll + BLOCKS - BLOCKS.mean()
    value = math.exp(nll) if nll < 700 else nll
    found = {
        "perplexity": value,
        "stderr": value * float(losses.std(ddof=1)) / 2,
        "nll": nll,
        "tokens": 40,
    }
    values = {
        "name": name,
        "seed": seed,
        "calibration": "text.txt",
        "removed": [] if name == "dense" else [2, 1],
        "num_layers": 6,
        "tokens": 1000,
        "perplexity": {"in_domain": found, "out_of_domain": found},
        "losses": {"in_domain": losses, "out_of_domain": losses},
        "tasks": {"a": {"metric": "acc", "value": 0.5 + seed / 10, "stderr": 0.05}},
        "task_mean": {"value": 0.5 + seed / 10, "stderr": 0.05},
        "tokens_seen": spent,
        "tokens_generated": 2 * spent,
        "optimizer_steps": spent // 100,
        "trainable_parameters": spent,
        "seconds": 10.0 + seed,
        "peak_memory_bytes": (1 + seed) << 20,
        "parameters": 99,
        "recipe": {"compensate": {"method": "none"}},
    }
    return Result.model_validate(values | more)


def shifted(one: Result, by: np.ndarray) -> Result:
    """Return a result with other losses of its blocks."""
    losses = {domain: values + by for domain, values in one.losses.items()}
    return one.model_copy(update={"losses": losses})


def rows_of(*results: Result, passes: float = 6.6) -> dict[str, TableRow]:
    (section,) = build(result("dense", 3.0), results, passes)
    return {row.name: row for row in section.rows}


def test_dense_is_on_top_floors_at_the_bottom_and_the_rest_by_perplexity() -> None:
    results = [
        result("last", 3.1),
        result("sleb", 4.0),
        result("random", 9.0),
        result("default", 3.5, spent=6000),
    ]
    assert list(rows_of(*results)) == ["dense", "default", "sleb", "last", "random"]


def test_the_gap_is_what_the_best_untrained_selection_leaves() -> None:
    mended = {"recipe": {"compensate": {"method": "linear"}}}
    rows = rows_of(
        result("sleb", 4.0),
        result("shortgpt", 4.5),
        result("sleb+linear", 3.8, **mended),
        result("default", 3.25, spent=6000),
    )
    # dense 3.0, best untrained and not compensated 4.0: a gap of 1.0
    assert rows["sleb"].gap_closed == pytest.approx(0)
    assert rows["shortgpt"].gap_closed == pytest.approx(-0.5)
    assert rows["sleb+linear"].gap_closed == pytest.approx(0.2)
    assert rows["default"].gap_closed == pytest.approx(0.75)
    assert rows["dense"].gap_closed is None
    assert rows_of(result("default", 3.25, spent=6000))["default"].gap_closed is None


def test_rows_over_the_budget_are_shown_but_never_best() -> None:
    results = [
        result("default", 3.5, spent=6600),
        result("long", 3.2, spent=6601),
        result("sleb", 4.0),
    ]
    rows = rows_of(*results)  # 6.6 passes over 1,000 tokens
    assert [name for name, row in rows.items() if row.over_budget] == ["long"]
    assert [
        name for name, row in rows.items() if row.mark["out_of_domain"] == "best"
    ] == ["default"]
    assert rows_of(*results, passes=7)["long"].mark["out_of_domain"] == "best"


def test_a_tie_is_judged_block_by_block_not_by_the_spread_of_the_text() -> None:
    first, second = result("a", 3.0), result("b", 3.01)
    # far less apart than the text's own standard error of 0.065, but the same on every block: no noise at all
    assert not tie([first], [second], "in_domain")
    # differences 0.05, -0.01, 0.03, -0.03: mean 0.01, spread 0.0365, standard error 0.0183: 0.01 < 0.0365
    second = shifted(first, np.array([0.05, -0.01, 0.03, -0.03]))
    assert tie([first], [second], "in_domain")
    assert tie([first], [result("c", 3.0)], "in_domain")  # identical


def test_over_seeds_the_noise_of_training_adds_to_that_of_the_text() -> None:
    first = [result("a", 3.0, seed=0), result("a", 3.0, seed=1)]
    second = [result("b", 3.1, seed=0), result("b", 3.3, seed=1)]
    # mean difference 0.2; over blocks no spread; over seeds 0.1 and 0.3: SE = 0.1414 / sqrt(2) = 0.1; 0.2 < 2 x 0.1
    # holds only up to rounding, so move one of them
    # 0.195 against 2 x 0.095
    assert not tie(first, [second[0], result("b", 3.29, seed=1)], "in_domain")
    # 0.205 against 2 x 0.105
    assert tie(first, [second[0], result("b", 3.31, seed=1)], "in_domain")
    assert not tie(first, [result("b", 3.1, seed=7)], "in_domain")  # no seed in common


def test_marks_of_a_whole_section() -> None:
    close = shifted(result("close", 3.5), np.array([0.02, -0.01, 0.0, 0.0]))
    rows = rows_of(result("best", 3.499), close, result("far", 3.6))
    assert {name: row.mark["in_domain"] for name, row in rows.items()} == {
        "dense": None,
        "best": "best",
        "close": "tie",
        "far": None,
    }


def test_task_means_are_marked_by_their_standard_errors() -> None:
    def mean(name: str, value: float, **more: Any) -> Result:
        return result(name, 3.5, task_mean={"value": value, "stderr": 0.03}, **more)

    # two standard errors of a difference: 2 x hypot(0.03, 0.03) = 0.0849
    rows = rows_of(
        mean("best", 0.70),
        mean("tie", 0.62),
        mean("far", 0.61),
        mean("long", 0.9, spent=9000),
    )
    assert {name: row.mark["task_mean"] for name, row in rows.items()} == {
        "dense": None,
        "best": "best",
        "tie": "tie",
        "far": None,
        "long": None,
    }
    untested = build(
        result("dense", 3.0, task_mean=None, tasks={}),
        [result("a", 3.5, task_mean=None, tasks={})],
        6.6,
    )
    assert "task_mean" not in untested[0].rows[1].mark
    assert "task mean" not in markdown(untested, 6.6, [0])


def test_seeds_are_averaged_in_log_perplexity() -> None:
    row = rows_of(
        result("a", 3.0, seed=0, spent=200, flops=700),
        result("a", 3.2, seed=1, spent=400, flops=1100),
    )["a"]
    found = row.perplexity["in_domain"]
    assert found.perplexity == pytest.approx(math.exp(3.1))
    # spread of 3.0 and 3.2 is 0.1414; over sqrt(2) that is 0.1
    assert found.stderr == pytest.approx(0.1 * math.exp(3.1))
    # 0.5 and 0.6: mean 0.55, standard error 0.0707 / sqrt(2)
    assert row.task_mean is not None
    assert (row.task_mean.value, row.task_mean.stderr) == (
        pytest.approx(0.55),
        pytest.approx(0.05),
    )
    assert (row.tokens_seen, row.tokens_generated, row.optimizer_steps) == (300, 600, 3)
    assert row.flops == 900
    assert row.trainable_parameters == 400
    assert (row.seconds, row.peak_memory_bytes, row.seeds) == (10.5, 2 << 20, [0, 1])
    single = rows_of(result("a", 3.0))["a"].perplexity["in_domain"]
    # the text's own
    assert single.stderr == pytest.approx(math.exp(3.0) * 0.1291 / 2, rel=1e-3)


def test_sections_are_split_by_layers_and_by_calibration_text() -> None:
    results = [
        result("a", 3.5),
        result("a", 3.6, calibration="other.txt"),
        result("a", 3.7, removed=[1]),
    ]
    sections = build(result("dense", 3.0), results, 6.6)
    assert [title(section) for section in sections] == [
        "1 of 6 layers removed (17%), calibrated on text.txt",
        "2 of 6 layers removed (33%), calibrated on other.txt",
        "2 of 6 layers removed (33%), calibrated on text.txt",
    ]
    assert all(section.rows[0].name == "dense" for section in sections)


def test_markdown_marks_best_ties_budget_and_missing_seeds() -> None:
    results = [result("best", 3.5, seed=seed) for seed in (0, 1)] + [
        result("same", 3.5, seed=seed) for seed in (0, 1)
    ]
    results += [result("long", 3.2, seed=seed, spent=9000) for seed in (0, 1)] + [
        result("late", 4.0)
    ]
    text = markdown(build(result("dense", 3.0), results, 6.6), 6.6, [0, 1])
    lines = {
        line.split("|")[1].strip(): line
        for line in text.splitlines()
        if line.startswith("|")
    }
    # exp(3.5) = 33.12, the same for both seeds
    assert "| 2, 1 | **33.12 ± 0.00** | **33.12 ± 0.00** |" in lines["best"]
    assert "| ≈ 33.12 ± 0.00 |" in lines["same"]
    assert "**" not in lines["long (over budget)"]
    assert "late (1 of 2 seeds)" in lines
    assert "| **0.550 ± 0.050** |" in lines["best"]
    assert "| ≈ 0.550 ± 0.050 |" in lines["same"]
    assert lines["dense"].count("|") == lines["best"].count("|")
    assert "Measured with 2 seeds: 0, 1." in text
    assert "TFLOPs" not in text  # nobody counted them
    counted = [result("counted", 3.5, flops=1_234_560_000_000_000)]
    table = build(result("dense", 3.0), counted, 6.6)
    told = markdown(table, 6.6, [0])
    assert "| 0 | 1,234.6 | 0 |" in told
    assert "*TFLOPs*: all that making" in told
    (_, line) = csv.DictReader(io.StringIO(csv_text(table)))
    assert line["flops"] == "1234560000000000"


def test_csv_and_json_hold_the_same_rows_and_only_finite_numbers() -> None:
    sections = build(
        result("dense", 3.0), [result("broken", math.nan), result("sleb", 4.0)], 6.6
    )
    assert "flops" not in csv_text(sections)
    rows = json.loads(json.dumps(flat(sections), allow_nan=False))
    assert [row["name"] for row in rows] == ["dense", "sleb", "broken"]
    assert rows[2]["perplexity"]["in_domain"]["perplexity"] is None
    lines = list(csv.DictReader(io.StringIO(csv_text(sections))))
    assert [line["name"] for line in lines] == ["dense", "sleb", "broken"]
    assert float(lines[1]["perplexity_out_of_domain"]) == pytest.approx(math.exp(4))
    assert (lines[1]["removed"], lines[1]["a"], lines[1]["mark_in_domain"]) == (
        "2 1",
        "0.5",
        "best",
    )
