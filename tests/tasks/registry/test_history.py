"""The log of decisions: numbers without gaps, entries that are never replaced, and the champions that it means."""

import pytest

from elder.errors import UserError
from tasks.registry.history import Entry, append, champions, read_log


def entry(
    number: int,
    action: str,
    version: str,
    previous: str | None = None,
    by: str = "anna@host",
) -> Entry:
    return Entry(
        number=number,
        action=action,
        version=version,
        previous=previous,
        digest="d" * 64,
        by=by,
        at="2026-11-24T02:15:00.000+00:00",
        reason="better",
        compared="not compared",
    )


def test_entries_come_back_in_order_and_are_never_replaced(store):
    assert read_log(store, "tiny") == []
    log = [entry(1, "promote", "1"), entry(2, "promote", "2", "1")]
    assert [append(store, "tiny", one) for one in log] == [True, True]
    assert not append(store, "tiny", entry(2, "promote", "3", "1", by="ben@host"))
    assert read_log(store, "tiny") == log
    assert store.paths("history/tiny") == {"000001.json", "000002.json"}
    assert read_log(store, "other") == []


def test_a_log_with_a_gap_or_a_damaged_entry_is_refused(tmp_path):
    from tasks.store.open import open_store

    store = open_store(str(tmp_path / "store"))
    for number in (1, 2, 3):
        append(store, "tiny", entry(number, "promote", str(number)))
    place = tmp_path / "store" / "history" / "tiny"
    whole = (place / "000002.json").read_bytes()
    (place / "000002.json").unlink()
    with pytest.raises(UserError, match=r"000002\.json is missing; restore it"):
        read_log(store, "tiny")
    for broken in (
        b"",
        b"{}",
        whole.replace(b'"number": 2', b'"number": 3'),
        whole.replace(b"promote", b"delete"),
    ):
        (place / "000002.json").write_bytes(broken)
        with pytest.raises(UserError, match=r"000002\.json is damaged; restore it"):
            read_log(store, "tiny")
    (place / "000002.json").write_bytes(whole)
    assert len(read_log(store, "tiny")) == 3


def test_names_that_are_no_place(store):
    for name in ("../models", "a/b", "", ".hidden"):
        with pytest.raises(UserError, match="use letters"):
            read_log(store, name)


@pytest.mark.parametrize(
    ("log", "stack"),
    [
        ([], []),
        ([("promote", "1", None)], ["1"]),
        (
            [("promote", "1", None), ("promote", "2", "1"), ("promote", "3", "2")],
            ["1", "2", "3"],
        ),
        # 1, 2, 3, back to 2: what lies above 2 is gone, the next rollback goes to 1
        (
            [
                ("promote", "1", None),
                ("promote", "2", "1"),
                ("promote", "3", "2"),
                ("rollback", "2", "3"),
            ],
            ["1", "2"],
        ),
        # ... and from 1 there is nothing before it
        (
            [("promote", "1", None), ("promote", "2", "1"), ("rollback", "1", "2")],
            ["1"],
        ),
        # promoted again after a rollback
        (
            [
                ("promote", "1", None),
                ("promote", "2", "1"),
                ("rollback", "1", "2"),
                ("promote", "2", "1"),
            ],
            ["1", "2"],
        ),
        # a champion from before the log began, set by hand
        ([("promote", "5", "4")], ["4", "5"]),
        ([("promote", "5", "4"), ("rollback", "4", "5")], ["4"]),
        # 1, 2, 1 again: back goes to 2, then to the first 1
        (
            [
                ("promote", "1", None),
                ("promote", "2", "1"),
                ("promote", "1", "2"),
                ("rollback", "2", "1"),
            ],
            ["1", "2"],
        ),
    ],
)
def test_champions_by_hand(log, stack):
    entries = [entry(number, *decision) for number, decision in enumerate(log, start=1)]
    assert champions(entries) == stack
