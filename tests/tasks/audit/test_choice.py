"""The audit follows each kind of choice from its scores, and names the round whose scores lead to other layers."""

import copy
from typing import Any
from unittest.mock import Mock

import pytest

from elder.record import Record
from tasks.audit.choice import layer_weights
from tasks.audit.evidence import Broken, Evidence

COUNT = 5  # layers of the dense model
Rounds = list[dict[str, Any]]

# One pass, the two lowest go, the lowest first.
ONE_SHOT: Rounds = [{"removed": [3, 1], "values": [0.9, 0.2, None, 0.1, 0.8]}]
# A round for each layer; what went has no score any more.
GREEDY: Rounds = [
    {"removed": [2], "values": [None, 4.5, 4.0, 4.25, None]},
    {"removed": [1], "values": [None, 4.5, None, 5.0, None]},
]
# Of the two lightest between the ends, layers 3 and 1, the first is missed more; then 1 is gone and 3 and 2 are tried.
CHECKED: Rounds = [
    {
        "removed": [1],
        "values": [0.1, 0.5, 0.9, 0.4, 0.2],
        "checked": [[3, 5.5], [1, 5.25]],
    },
    {
        "removed": [3],
        "values": [0.1, None, 0.9, 0.4, 0.2],
        "checked": [[3, 5.75], [2, 6.0]],
    },
]
# The block of two from layer 2 is the flattest.
BLOCK: Rounds = [{"removed": [2, 3], "values": [0.5, 0.4, 0.25, None, None]}]
# First layers 3 and 4 collapse into 2, then 1 into 0.
MERGES: Rounds = [
    {"removed": [3, 4], "values": [None, None, None, 0.125, 0.125]},
    {"removed": [1], "values": [None, 0.25, None, None, None]},
]
HONEST = {
    "block influence": ONE_SHOT,
    "loss without the layer": GREEDY,
    "layer weight": CHECKED,
    "angular distance of the block from here": BLOCK,
    "1 - similarity after the merge": MERGES,
}


def settings(shortlist: int, runners_up: int) -> dict[str, Any]:
    """Return the lineage of a record whose layers were chosen with these settings."""
    chosen = {"shortlist": shortlist, "runners_up": runners_up}
    return {"params": {"select": {"elder": chosen}}}


def evidence(score: str, rounds: Rounds, **changes: Any) -> Evidence:
    """Return what an audit sees of a record with these rounds, attached to MLflow as it is stored."""
    scores = {"name": score, "lower_goes": True, "rounds": rounds}
    removed = [layer for one in rounds for layer in one["removed"]]
    tree = {
        "run_id": "20261124-021500-ab12cd34",
        "created": "2026-11-24T02:15:00+00:00",
        "model": {"name": "models/dense"},
        "num_layers": COUNT,
        "removed": removed,
        "scores": scores,
        "weights": scores if score == "layer weight" else None,
        "rows": [],
        "gate": {"mode": "off", "passed": True},
        "lineage": settings(2, 0),
    } | changes
    record = Record.model_validate(tree)
    return Mock(record=record, record_tree=tree, attached=lambda _: tree["weights"])


@pytest.mark.parametrize("score", HONEST)
def test_honest_scores_lead_to_the_layers_that_went(score: str) -> None:
    layer_weights(evidence(score, HONEST[score]))


FORGED: list[tuple[str, int, str, Any, str]] = [
    # the score of layer 3 is raised above that of layer 1: now 1 is the lowest
    (
        "block influence",
        0,
        "values.3",
        0.3,
        r"round 1: by block influence layers \[1, 3\] go",
    ),
    (
        "block influence",
        0,
        "values.0",
        0.15,
        r"layers \[3, 0\] go, the record says \[3, 1\]",
    ),
    ("loss without the layer", 1, "values.3", 4.25, r"round 2: .* layers \[3\] go"),
    (
        "loss without the layer",
        1,
        "values.2",
        4.0,
        r"round 2: layers \[2\] went in an earlier",
    ),
    ("loss without the layer", 0, "values", [4.0], "1 layers have a score, .* has 5"),
    ("layer weight", 0, "checked.1.1", 5.75, "round 1: layer 3 was missed the least"),
    (
        "layer weight",
        0,
        "values.2",
        0.3,
        r"layers \[1, 3\] were tried, .* is \[2, 3\]",
    ),
    ("layer weight", 1, "checked.1.0", 4, r"round 2: layers \[3, 4\] were tried"),
    ("layer weight", 0, "checked", [], r"round 1: by layer weight layers \[0\] go"),
    (
        "angular distance of the block from here",
        0,
        "values.1",
        0.125,
        r"layers \[1, 2\] go",
    ),
    (
        "1 - similarity after the merge",
        0,
        "values.4",
        0.25,
        r"round 1: .* layers \[\] go",
    ),
    (
        "1 - similarity after the merge",
        0,
        "values.4",
        None,
        r"round 1: .* layers \[3\] go",
    ),
]


@pytest.mark.parametrize(("score", "number", "path", "value", "named"), FORGED)
def test_a_forged_value_is_named(
    score: str, number: int, path: str, value: Any, named: str
) -> None:
    rounds = copy.deepcopy(HONEST[score])
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = rounds[number]
    for step in way:
        place = place[step]
    place[last] = value
    with pytest.raises(Broken, match=named):
        layer_weights(evidence(score, rounds))


def test_of_a_race_those_that_stayed_decide() -> None:
    # layer 3 left after 8 blocks, on which it looked as if it were missed less
    greedy: Rounds = [
        {
            "removed": [2],
            "values": [None, 4.5, 4.0, 3.75, None],
            "blocks": [[1, 16], [2, 16], [3, 8]],
        }
    ]
    checked: Rounds = [
        {
            "removed": [1],
            "values": [0.1, 0.5, 0.9, 0.4, 0.2],
            "checked": [[3, 5.0], [1, 5.25]],
            "blocks": [[3, 8], [1, 16]],
        }
    ]
    for score, rounds in (
        ("loss without the layer", greedy),
        ("layer weight", checked),
    ):
        layer_weights(evidence(score, rounds))
        rounds[0]["blocks"][-1][1] = 32
        rounds[0]["blocks"][0][1] = 64
        with pytest.raises(Broken, match="round 1"):
            layer_weights(evidence(score, rounds))
    checked[0]["blocks"].pop()
    with pytest.raises(
        Broken, match=r"\[1, 3\] were tried, blocks are counted of \[3\]"
    ):
        layer_weights(evidence("layer weight", checked))


def test_the_runners_up_of_the_round_before_are_tried_again() -> None:
    rounds: Rounds = [
        {
            "removed": [1],
            "values": [0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.1],
            "checked": [[1, 5.0], [2, 7.0], [3, 6.0], [4, 8.0], [5, 6.5]],
        },
        {  # 3 was the runner-up, and the two lightest of the others are 5 and 2
            "removed": [5],
            "values": [0.1, None, 0.5, 0.9, 0.8, 0.2, 0.1],
            "checked": [[3, 7.0], [5, 6.5], [2, 8.0]],
        },
    ]
    lineage = settings(2, 1)
    layer_weights(evidence("layer weight", rounds, num_layers=7, lineage=lineage))
    rounds[0]["checked"][3][1] = 5.5  # now 4 is the runner-up
    named = r"round 2: layers \[2, 3, 5\] were tried, the shortlist is \[2, 4, 5\]"
    with pytest.raises(Broken, match=named):
        layer_weights(evidence("layer weight", rounds, num_layers=7, lineage=lineage))


def test_where_the_highest_score_goes_a_forged_value_is_named_too() -> None:
    rounds: Rounds = [{"removed": [3, 1], "values": [0.1, 0.8, None, 0.9, 0.2]}]
    scores = {"name": "redundancy", "lower_goes": False, "rounds": rounds}
    layer_weights(evidence("redundancy", rounds, scores=scores))
    rounds[0]["values"][0] = 0.85
    with pytest.raises(Broken, match=r"layers \[3, 0\] go, the record says \[3, 1\]"):
        layer_weights(evidence("redundancy", rounds, scores=scores))


def test_layers_that_no_round_took_out_are_named() -> None:
    with pytest.raises(
        Broken, match=r"removed layers \[2, 1\], the record says \[1, 2\]"
    ):
        layer_weights(evidence("loss without the layer", GREEDY, removed=[1, 2]))


def test_layer_weights_are_the_scores_that_were_chosen_by() -> None:
    other = {"name": "layer weight", "lower_goes": True, "rounds": CHECKED[:1]}
    with pytest.raises(Broken, match="the layer weights are not the scores"):
        layer_weights(evidence("layer weight", CHECKED, weights=other))
    with pytest.raises(Broken, match="but no layer weights"):
        layer_weights(evidence("layer weight", CHECKED, weights=None))
    with pytest.raises(Broken, match="has no scores"):
        layer_weights(evidence("layer weight", CHECKED, scores=None))
