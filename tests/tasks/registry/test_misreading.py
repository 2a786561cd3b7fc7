"""A store that gives back other bytes than it holds, once or for good: no decision is taken on such a history."""

from collections.abc import Callable
from contextlib import suppress

import pytest

from elder.errors import UserError
from tasks.registry import ledger
from tasks.registry.promotion import Refused
from tasks.store.local import LocalStore
from tests.tasks.registry.decisions import (
    add,
    champion,
    decisions,
    promote,
    roll_back,
)

MOST = 40  # readings of an entry in one decision
Misread = Callable[[str, int, int], Callable[[], int]]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(ledger, "PAUSE", 0.0)


@pytest.fixture
def misread(monkeypatch) -> Misread:
    """Return a function that spoils readings of an entry from ``first`` on, ``times`` of them; gives their count."""
    really_read = LocalStore.read

    def spoil(name: str, first: int, times: int) -> Callable[[], int]:
        seen = [0]

        def read(store: LocalStore, key: str) -> bytes | None:
            data = really_read(store, key)
            if key.endswith(name) and data:
                seen[0] += 1
                if first < seen[0] <= first + times:
                    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
            return data

        monkeypatch.setattr(LocalStore, "read", read)
        return lambda: seen[0]

    return spoil


def begin(local, tmp_path) -> None:
    for number in (1, 2, 3):
        add(local, tmp_path, number)
    for version in ("1", "2"):
        promote(local, tmp_path, version)


@pytest.mark.parametrize("entry", ["000002.json", "000003.json"])
@pytest.mark.parametrize("decide", ["promote", "roll back"])
def test_an_entry_that_is_misread_once_changes_no_decision(
    local, tmp_path, misread, decide, entry
):
    begin(local, tmp_path)
    number, stack = 2, ["1", "2"]
    for first in range(MOST):
        readings = misread(entry, first, 1)
        if decide == "promote":
            wanted = "3" if stack[-1] != "3" else "2"
            assert promote(local, tmp_path, wanted).version == wanted
            stack.append(wanted)
        else:
            assert roll_back(local, tmp_path).version == stack[-2]
            stack.pop()
            if len(stack) < 2:
                misread("none", 0, 0)
                promote(local, tmp_path, "2")
                stack.append("2")
                number += 1
        number += 1
        count = readings()
        misread("none", 0, 0)
        log, faults = decisions(local, tmp_path)
        assert (len(log), faults) == (number, [])
        assert champion(local) == stack[-1]
        if first >= count:
            break
    assert first > 2  # it was read more often than that


def test_an_entry_that_stays_unreadable_moves_no_champion_back(
    local, tmp_path, misread
):
    begin(local, tmp_path)
    for first in range(MOST):
        before = champion(local)
        readings = misread("000002.json", first, 1000)
        other = {"2": "3", "3": "2"}[before]
        with suppress(UserError):
            promote(local, tmp_path, other)
        assert champion(local) in (before, other)
        count = readings()
        misread("none", 0, 0)
        assert decisions(local, tmp_path)[1] == []
        if first >= count:
            break
    assert first > 2


def test_a_history_that_reads_differently_each_time_cannot_be_accepted(
    local, tmp_path, misread
):
    begin(local, tmp_path)
    misread("000002.json", 0, 1)
    with pytest.raises(Refused, match="not the same each time"):
        promote(local, tmp_path, "3", force=True, accept_history=True)
    misread("none", 0, 0)
    assert len(decisions(local, tmp_path)[0]) == 2
