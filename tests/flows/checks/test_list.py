"""All checks are made, those that wait for others at the same time; a run stops at the first that says no."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from elder.errors import UserError
from elder.params import Params
from flows.checks import doctor
from flows.checks.doctor import Check, examine, require

IMPORTED = """
import sys
from pathlib import Path
from elder.params import Params
from flows.checks.doctor import Check, look_at

def look(settings, root):
    return " ".join(sys.modules)

seen = set(sys.modules)
found = look_at([Check("a", look, elsewhere=True)], Params(), Path())
print(*sorted({"prefect.main", "prefect.client.orchestration"} & set(found[0].detail.split()) - seen))
"""


def says(sentence: str, seen: list[str] | None = None, **how: bool) -> Check:
    def look(_: Params, __: Path) -> str:
        if seen is not None:
            seen.append(sentence)
        return sentence

    return Check(sentence, look, **how)


def refuses(sentence: str, **how: bool) -> Check:
    def look(_: Params, __: Path) -> str:
        raise UserError(sentence)

    return Check(sentence, look, **how)


def test_the_doctor_shows_all_in_their_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = (says("a"), refuses("b", elsewhere=True), says("c", scheduled=True))
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert examine(Params(), tmp_path) == [
        {"name": "a", "ok": True, "detail": "a"},
        {"name": "b", "ok": False, "detail": "b"},
        {"name": "c", "ok": True, "detail": "c"},
    ]


def test_a_run_stops_at_the_first_no_and_asks_nobody_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    checks = (
        says("far", asked, elsewhere=True),
        says("near", asked),
        refuses("no"),
        says("later", asked),
    )
    monkeypatch.setattr(doctor, "CHECKS", checks)
    with pytest.raises(UserError, match="no"):
        require(Params(), tmp_path)
    assert asked == ["near"]


def test_a_run_needs_nothing_that_only_schedules_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = (
        says("a", elsewhere=True),
        refuses("worker", elsewhere=True, scheduled=True),
    )
    monkeypatch.setattr(doctor, "CHECKS", checks)
    require(Params(), tmp_path)
    checks = (
        *checks,
        refuses("first", elsewhere=True),
        refuses("second", elsewhere=True),
    )
    monkeypatch.setattr(doctor, "CHECKS", checks)
    with pytest.raises(UserError, match="first"):
        require(Params(), tmp_path)


def test_what_does_not_answer_is_waited_for_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    all_are_waiting = threading.Barrier(3, timeout=30)

    def look(_: Params, __: Path) -> str:
        all_are_waiting.wait()
        raise UserError("nobody answers")

    checks = tuple(Check(name, look, elsewhere=True) for name in "abc")
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert [check["ok"] for check in examine(Params(), tmp_path)] == [False] * 3


def test_no_two_threads_begin_to_import_prefect() -> None:
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["prefect.client.orchestration", "prefect.main"]
