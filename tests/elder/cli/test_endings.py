"""How a command ends when its work fails: one sentence and a status of its own, or a traceback of a fault of ours."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.errors import Crash, UserError

Elder = Callable[..., Result]


def ending(
    elder: Elder, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> Result:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("elder.model.load.load_model", failing)
    return elder("select", "--method", "shortgpt")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"
        ),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        ),
        MemoryError(),
    ],
)
def test_a_want_of_memory_is_one_sentence(
    elder: Elder, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    found = ending(elder, monkeypatch, error)
    assert found.exit_code == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: the work does not fit into memory")
    assert found.stderr.count("\n") == 1


def test_a_process_that_died_is_one_sentence_and_a_status_of_its_own(
    elder: Elder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ending(elder, monkeypatch, Crash("stage learn was killed"))
    assert (found.exit_code, found.stderr) == (3, "error: stage learn was killed\n")


def test_what_the_system_refuses_is_one_sentence(
    elder: Elder, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "a.txt")
    found = ending(elder, monkeypatch, error)
    said = "error: 'a.txt' cannot be used: Permission denied; name another\n"
    assert (found.exit_code, found.stderr) == (2, said)
    found = elder("select", model="x" * 300)
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.endswith("cannot be used: File name too long; name another\n")


def test_a_name_in_a_sentence_is_shown_as_it_is(
    elder: Elder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colons and brackets mean pictures and colours to rich."""
    found = ending(elder, monkeypatch, UserError("models:x: [red]no[/red]"))
    assert found.stderr == "error: models:x: [red]no[/red]\n"


def test_a_home_is_spelt_out_where_a_shell_leaves_it(
    elder: Elder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = elder("select", "--params=~/none.yaml")
    assert f"no parameter file '{tmp_path}/none.yaml'" in found.stderr
    found = elder("select", model="~/none/x")
    assert f"no model folder '{tmp_path}/none/x'" in found.stderr


def test_a_fault_of_ours_shows_where_and_is_no_check_that_said_no(
    elder: Elder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ending(elder, monkeypatch, ZeroDivisionError("a fault"))
    assert found.exit_code == 3
    assert "Traceback" in found.stderr
    assert found.stderr.endswith("ZeroDivisionError: a fault\n")


def test_wrong_options_end_as_ever(elder: Elder) -> None:
    found = elder("select", "--no-such-option")
    assert found.exit_code == 2
    assert "No such option" in found.stderr


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--text", "a.txt", "--seq-len", "-5"], "'--seq-len'"),
        (["--tasks", "blimp", "--limit", "-1"], "'--limit'"),
        (["--text", "a.txt", "--set", "evaluate.seq_len=1"], "at least 8 tokens"),
        (["--tasks", " , "], "nothing to evaluate"),
    ],
)
def test_what_measures_nothing_is_refused(given: list[str], sentence: str) -> None:
    found = CliRunner().invoke(build_app(LIBRARY), ["evaluate", "none", *given])
    assert (found.exit_code, found.stdout) == (2, "")
    assert sentence in found.stderr
