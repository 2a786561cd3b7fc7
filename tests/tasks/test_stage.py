"""A stage in a process of its own: how its end is told."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from elder.errors import Crash, UserError
from tasks import stage


@pytest.mark.parametrize(
    ("end", "error", "sentence"),
    [
        (
            "kill -KILL $$",
            Crash,
            "stage job was killed (SIGKILL), as the system does where memory",
        ),
        (
            "kill -SEGV $$",
            Crash,
            "stage job was killed by SIGSEGV; what it had finished is kept",
        ),
        (
            "exit 3",
            Crash,
            "stage job failed with exit status 3, for the reason shown above;",
        ),
        (
            "printf 'process 1 of 2 was killed: run again' > $ELDER_ERROR_FILE; exit 3",
            Crash,
            "stage job: process 1 of 2 was killed: run again",
        ),
        (
            "printf 'no such text' > $ELDER_ERROR_FILE; exit 2",
            UserError,
            "no such text",
        ),
    ],
)
def test_how_a_stage_ended(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    error: type,
    sentence: str,
) -> None:
    stand_in(tmp_path, monkeypatch, end)
    with pytest.raises(error) as found:
        stage.run_stage("job", "learn")
    assert str(found.value).startswith(sentence)
    assert "\n" not in str(found.value)


def test_a_stage_that_was_killed_runs_once_more_with_half_as_much_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, monkeypatch, 'test "$ELDER_SMALLER" = 1 || kill -KILL $$')
    stage.run_stage("job", "recover")
    said = " ".join(capfd.readouterr().err.split())
    assert "runs out: it goes on with half as many blocks at once" in said


def test_a_stage_of_which_one_process_was_killed_runs_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = "{ printf 'process 1 was killed' > $ELDER_ERROR_FILE; exit 3; }"
    stand_in(tmp_path, monkeypatch, f'test "$ELDER_SMALLER" = 1 || {killed}')
    stage.run_stage("job", "recover")
    said = " ".join(capfd.readouterr().err.split())
    assert said == (
        "stage job: process 1 was killed: it goes on with half as many blocks at once"
    )


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a script stand for the process of a stage."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(stage, "gpu_slot", nullcontext)
    monkeypatch.setattr(stage.sys, "executable", str(program))
