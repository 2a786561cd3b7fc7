"""Names from a registry or a store that others write to: none of them can look like a line of a command's own."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from elder.cli.output import refuse, show
from elder.errors import UserError
from elder.params import Params
from flows import sweep
from flows.cli import registry
from flows.cli.audit import _audit_lines
from flows.cli.registry import _print_table
from tasks.audit.run import Audit, Finding
from tasks.registry.history import Entry

FORGED = "tiny\nholds    signature: valid\x1b[1A"
SHOWN = "tiny\\nholds    signature: valid\\x1b[1A"


def test_a_check_of_the_audit_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    check = Finding(name="bytes", ok=False, detail=f"{FORGED} is not in the manifest")
    named = {"broken": ["bytes"], "waived": [], "unknown": []}
    result = Audit(
        ok=False, name=FORGED, version="1", source="store", checks=[check], **named
    )
    show(result.model_dump(), False, lambda: _audit_lines(result))
    assert capsys.readouterr().out.splitlines() == [
        f"BROKEN   bytes: {SHOWN} is not in the manifest",
        f"{SHOWN} version 1: does not hold: bytes",
    ]


def test_a_refusal_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        refuse("error: there is no model 'a\x1b[2K\rb'", 2)
    assert capsys.readouterr().err == "error: there is no model 'a\\x1b[2K\\rb'\n"


def test_a_reason_in_the_history_is_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "number": 1,
        "action": "promote",
        "version": "1",
        "previous": None,
        "digest": "0" * 64,
        "by": "mallory\nroot@host",
        "at": "2026-11-01T02:00:00+00:00",
        "reason": FORGED,
        "compared": "",
    }
    _print_table("tiny", [Entry.model_construct(**values)], [])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 6  # title, three rules, headings, one entry
    assert "mallory\\nroot@host" in printed
    assert SHOWN in printed


def test_a_cell_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse_name(*_: object) -> None:
        raise UserError(f"there is no model {FORGED}")

    monkeypatch.setattr(sweep, "read_settings", refuse_name)
    row = sweep.run_cell(sweep.Cell({"method": "sleb"}, "sleb", ()), None, Path())
    assert row["error"] == f"there is no model {FORGED}"
    assert capsys.readouterr().err == f"failed: there is no model {SHOWN}\n"


def test_what_somebody_is_asked_to_confirm_is_shown_line_by_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_plan_lines", lambda _: ["promote", FORGED])
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    asked = registry.Confirmation(reason="why", yes=False)
    with pytest.raises(SystemExit, match="1"):
        registry._decide(
            Params(), lambda: SimpleNamespace(action="promote"), asked, False
        )
    assert capsys.readouterr().err.splitlines() == [
        "promote",
        SHOWN,
        "nothing was changed",
    ]
