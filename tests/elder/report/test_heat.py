"""Shades of a heat map, by hand."""

from typing import Any

from elder.record import Scores
from elder.report.heat import HeatMap
from elder.report.heat import heat_map as typed


def heat_map(tree: dict[str, Any], removed: list[int]) -> HeatMap:
    return typed(Scores.model_validate(tree), removed)


def test_heat_map_shades_what_matters_least():
    turn = {"removed": [1], "values": [None, 1.0, 2.0, 3.0, 500.0]}
    # the scale runs from 1 to the 90th percentile, here 500: 1 -> 70, 2 -> 70 * 498 / 499 = 69.86, 500 -> 0
    cells = (
        heat_map({"name": "s", "lower_goes": True, "rounds": [turn, turn]}, [1])
        .rows[0]
        .cells
    )
    assert [cell.level for cell in cells] == [None, 70, 70, 70, 0]
    assert [cell.goes for cell in cells] == [False, True, False, False, False]
    turned = (
        heat_map({"name": "s", "lower_goes": False, "rounds": [turn]}, [3, 4])
        .rows[0]
        .cells
    )
    assert (turned[4].level, turned[3].goes, turned[1].goes) == (70, True, False)


def test_a_heat_map_of_checked_rounds_says_what_decided():
    turn = {"removed": [2], "values": [9.0, 1.0, 2.0], "checked": [[1, 3.5], [2, 3.25]]}
    plain = {"removed": [1], "values": [9.0, 1.0, 2.0], "checked": []}
    found = heat_map({"name": "layer weight", "rounds": [turn, plain]}, [2, 1])
    assert [cell.loss for cell in found.rows[0].cells] == [None, 3.5, 3.25]
    assert [cell.goes for cell in found.rows[0].cells] == [False, False, True]
    assert (
        found.rule == "of those tried, outlined, the one whose absence costs least goes"
    )
    assert heat_map({"rounds": [plain, plain]}, [1]).rule == "the lowest goes first"
