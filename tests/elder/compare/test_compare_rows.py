"""The words of ``--methods``: what a row stands for, and what is refused."""

import pytest

from elder.compare.rows import parse_rows, split_outside
from elder.errors import UserError
from elder.params import Params
from elder.settings import validate


def test_commas_inside_brackets_belong_to_the_row() -> None:
    found = split_outside(
        "default, elder[select.protect=[0,5],regularise.epochs=0] ,sleb+distil"
    )
    assert found == [
        "default",
        "elder[select.protect=[0,5],regularise.epochs=0]",
        "sleb+distil",
    ]


def test_a_selection_alone_is_its_paper_and_parts_follow_it() -> None:
    base = Params()
    plain, trained, both = (
        row.settings(base)
        for row in parse_rows("sleb,sleb+train,shortgpt+linear+distil")
    )
    assert (plain.select.method, plain.regularise.epochs, plain.recover.mode) == (
        "sleb",
        0,
        "none",
    )
    assert (trained.select.method, trained.recover.mode) == ("sleb", "train")
    # every recovery has the same budget
    assert trained.recover.epochs == base.recover.epochs
    assert (both.select.method, both.compensate.method, both.recover.mode) == (
        "shortgpt",
        "linear",
        "distil",
    )


def test_parts_come_in_any_order_and_by_their_longer_names() -> None:
    (one,) = parse_rows("shortgpt+remove-then-distil+linear")
    (other,) = parse_rows("shortgpt+linear+distil")
    assert one.settings(Params()) == other.settings(Params())


def test_default_is_the_parameters_as_they_stand() -> None:
    base = validate(
        {"select": {"method": "shortgpt"}, "recover": {"mode": "train", "epochs": 2}}
    )
    assert parse_rows("default")[0].settings(base) == base


def test_changes_hold_against_the_recipe() -> None:
    (row,) = parse_rows(
        "elder[regularise.epochs=0,select.elder.iterative=false,select.elder.lambda1=1e-2]"
    )
    found = row.settings(Params())
    learning = found.select.settings_of("elder")
    assert (found.regularise.epochs, learning.iterative, learning.lambda1) == (
        0,
        False,
        0.01,
    )
    # the rest stays as published
    assert (learning.place, found.regularise.lr) == ("output", 2e-5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("slebb", "no method 'slebb'; did you mean 'sleb'"),
        (
            "sleb+distill",
            "nothing named 'distill' can follow 'sleb'; did you mean 'distil'",
        ),
        ("sleb+train+distil", "names 2 ways of recovery, train and distil"),
        ("sleb,sleb", "'sleb' was given twice"),
        (" , ", "no method was named"),
        ("sleb[recover.mode]", "not of the form section.key=value"),
        ("sleb]x[", "not of the form method"),
    ],
)
def test_wrong_rows_are_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_rows(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sleb[selekt.batch=1]", "did you mean 'select'"),
        ("elder[select.elder.bach=1]", "did you mean 'batch'"),
        ("elder[select.lambda1=1]", "has moved, set select.elder.lambda1"),
        ("sleb[evaluate.limit=1]", "all rows share"),
        ("sleb[calibration.samples=4]", "all rows share"),
    ],
)
def test_wrong_changes_are_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_rows(text)[0].settings(Params())
