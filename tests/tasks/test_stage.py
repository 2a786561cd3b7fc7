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
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(stage, "gpu_slot", nullcontext)
    monkeypatch.setattr(stage.sys, "executable", str(program))
    with pytest.raises(error) as found:
        stage.run_stage("job", "learn")
    assert str(found.value).startswith(sentence)
    assert "\n" not in str(found.value)
