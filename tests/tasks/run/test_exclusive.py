"""Only one run at a time is at work in a project, and a killed one makes room."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks.run import exclusive as module
from tasks.run.exclusive import exclusive

HOLD = """
import sys
from pathlib import Path
from tasks.run.exclusive import exclusive
with exclusive(Path(sys.argv[1])) as name_the_run:
    name_the_run("20260101-020000-abcdef12")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_next_waits_is_told_for_whom_and_goes_on_when_the_holder_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, said = [], threading.Event()
    monkeypatch.setattr(module, "say", lambda text: (told.append(text), said.set()))
    entered = threading.Event()

    def follow() -> None:
        with exclusive(tmp_path):
            entered.set()

    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        follower = threading.Thread(target=follow)
        follower.start()
        assert said.wait(10)
        assert not entered.wait(0.2)
        holder.kill()
        assert entered.wait(10)
        follower.join()
    assert len(told) == 1
    assert told[0].startswith(
        f"run 20260101-020000-abcdef12 (process {holder.pid}, since 20"
    )


def test_the_project_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), exclusive(tmp_path):
        raise RuntimeError("the run failed")
    with exclusive(tmp_path) as name_the_run:
        name_the_run("again")
        assert '"run_id": "again"' in (tmp_path / "runs" / module.HOLDER).read_text()
