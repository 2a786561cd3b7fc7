"""Records are read without a change: digests over what was written hold, and what is no record is refused."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from elder.errors import UserError
from elder.record import (
    CompressionRecord,
    Json,
    Perplexity,
    Record,
    Round,
    Row,
    json_safe,
    plain,
    read_record,
)
from tests.elder.records import compress_record, make_record, make_row

PUBLISHED = Path(__file__).parents[1] / "records"
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=4,
)
ROUNDS = st.fixed_dictionaries(
    {
        "removed": st.lists(st.integers(), max_size=3),
        "values": st.lists(st.one_of(st.none(), NUMBERS), max_size=4),
    },
    optional={
        "checked": st.lists(st.tuples(st.integers(), NUMBERS).map(list), max_size=3)
    },
)


def written(tree: Json) -> str:
    return json.dumps(tree, sort_keys=True)


@pytest.mark.parametrize(
    ("kind", "make"), [(Record, make_record), (CompressionRecord, compress_record)]
)
def test_a_record_comes_back_as_it_was_written(kind: Any, make: Any) -> None:
    tree = make()
    assert written(plain(kind.model_validate(tree))) == written(tree)


@pytest.mark.parametrize(
    "path", sorted(PUBLISHED.glob("*/published/record.json")), ids=str
)
def test_records_of_older_versions_come_back_as_they_were_written(path: Path) -> None:
    for name, kind in ((path.name, Record), ("elder.json", CompressionRecord)):
        tree = json.loads(path.with_name(name).read_text(encoding="utf-8"))
        assert written(plain(kind.model_validate(tree))) == written(tree)


# a busy machine is slow, and that says nothing about records
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    unknown=st.dictionaries(
        st.text(max_size=5).map("new {}".format), VALUES, max_size=3
    ),
    rounds=st.lists(ROUNDS, max_size=3),
    numbers=st.lists(NUMBERS, min_size=8, max_size=8),
)
def test_any_record_comes_back_as_it_was_written(
    unknown: dict[str, Any], rounds: list[Any], numbers: list[Any]
) -> None:
    tree = make_record()
    tree["scores"]["rounds"] = rounds
    tree["rows"][0]["perplexity"]["in_domain"] |= {
        "perplexity": numbers[0],
        "stderr": numbers[1],
    }
    tree["rows"][1]["task_mean"] = {"value": numbers[2], "stderr": None}
    tree["gate"]["rules"][0] |= {"value": numbers[3], "limit": numbers[4]}
    tree["curve"] = [
        {"stage": "recover", "step": 1, "loss": numbers[5], "lr": numbers[6]}
    ]
    tree["seconds"] = numbers[7]
    for part in (
        tree,
        tree["rows"][0],
        tree["gate"],
        tree["lineage"],
        tree["search"][0],
    ):
        part |= unknown
    before = copy.deepcopy(tree)
    assert written(plain(Record.model_validate(tree))) == written(before)


@pytest.mark.parametrize("value", [True, "1", 1.0])
def test_a_value_of_another_type_is_refused_and_never_turned_into_one_that_fits(
    value: Any,
) -> None:
    with pytest.raises(ValidationError):
        Round.model_validate({"removed": [value], "values": []})


@pytest.mark.parametrize(
    "lacking", ["run_id", "created", "rows", "gate", "model", "removed"]
)
@pytest.mark.parametrize("value", ["absent", None])
def test_a_tree_that_is_no_record_is_refused_by_name(
    lacking: str, value: str | None
) -> None:
    tree = make_record()
    if value == "absent":
        del tree[lacking]
    else:
        tree[lacking] = value
    with pytest.raises(
        UserError, match=f"old/record.json is no record of a run: {lacking}: "
    ):
        read_record(tree, "old/record.json")


@pytest.mark.parametrize("tree", [None, [], "text", 3])
def test_other_json_is_refused(tree: Json) -> None:
    with pytest.raises(UserError, match="no record of a run: its content: "):
        read_record(tree, "record.json")


def test_rows_are_found_by_their_kind() -> None:
    record = Record.model_validate(make_record())
    assert record.dense.name == "dense"
    assert record.candidate.name == "default"
    assert [row.name for row in record.baselines] == ["shortgpt", "sleb", "elder"]
    tree = make_record()
    tree["rows"] = tree["rows"][1:]
    with pytest.raises(UserError, match="has no row of the dense model"):
        Record.model_validate(tree).dense  # noqa: B018


def test_json_has_no_infinity() -> None:
    row = make_row("dense", "dense", [], math.inf, 41.3) | {
        "odd": [math.nan, (-math.inf, 1)]
    }
    assert json_safe(
        {"ratio": math.inf, "tasks": {"a": (1, math.nan)}, "ok": True}
    ) == {
        "ratio": None,
        "tasks": {"a": [1, None]},
        "ok": True,
    }
    told = json_safe(plain(Row.model_validate(row)))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["perplexity"]["in_domain"]["perplexity"] is None
    assert told["odd"] == [None, [None, 1]]
    read = Row.model_validate(told)
    assert read.perplexity["in_domain"] == Perplexity(
        perplexity=None, stderr=0.41, tokens=65_280
    )
