"""Where dots, whiskers and ticks lie, by hand."""

import pytest

from elder.record import Row
from elder.report.dots import (
    RowValue,
    dot_plot,
    mean_values,
    task_values,
    ticks,
    whiskers,
)
from tests.elder.records import make_row


def test_dot_plot_places_values_on_a_log_scale() -> None:
    values = [
        RowValue(name, kind, value, 0)
        for name, kind, value in (
            ("d", "dense", 1.0),
            ("m", "baseline", 10.0),
            ("c", "candidate", 100.0),
        )
    ]
    plot = dot_plot("x", values, log=True)
    places = [dot.at[1] for dot in plot.dots]
    # 6 % of room at both ends of the range: 0.06 / 1.12 = 5.36 %, the geometric middle at 50 %
    assert places == [5.36, 50.0, 94.64]
    assert plot.dense is not None
    assert plot.dense.at[1] == 5.36


@pytest.mark.parametrize(
    ("value", "error", "log", "ends"),
    [
        (4.0, 1.0, False, [3.0, 4.0, 5.0]),
        (4.0, None, False, [4.0, 4.0, 4.0]),  # a single block has no error
        (4.0, 3.0, True, [2.0, 4.0, 7.0]),  # no further down than half of it
        (0.0, 1.0, True, []),
        (None, None, False, []),
        (float("inf"), None, False, []),
    ],
)
def test_whiskers_by_hand(
    value: float | None, error: float | None, log: bool, ends: list[float]
) -> None:
    assert whiskers(RowValue("r", "baseline", value, error), log) == ends


def test_rows_without_a_number_have_no_place() -> None:
    tree = make_row("dense", "dense", [], 38.2, 41.3) | {"tasks": {}, "task_mean": None}
    rows = [Row.model_validate(tree)]
    assert task_values(rows, "anaphor_agreement") == []
    assert mean_values(rows) == []
    plot = dot_plot("x", [RowValue("r", "dense", None, None)], log=True)
    assert (plot.dots[0].at, plot.dense, plot.ticks) == ((), None, [])


def test_ticks_are_round_numbers():
    assert ticks(40.0, 52.0, log=True) == [40.0, 45.0, 50.0]
    assert ticks(3.0, 900.0, log=True) == [5.0, 20.0, 100.0, 500.0]
