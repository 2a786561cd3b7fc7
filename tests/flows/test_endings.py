"""How a run's end is told: to the webhook, and as the state of a scheduled run."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from filelock import FileLock, Timeout
from httpx import ConnectError, ReadTimeout
from prefect.server.api.server import SubprocessASGIServer
from prefect.states import State

from elder.errors import UserError
from elder.params import Params
from elder.record import Record
from flows import nightly, run
from flows.checks.inputs import FoundModel
from flows.compress import do_all
from tasks.run.exclusive import HOLDER, LOCK
from tasks.run.folder import FINISHED
from tasks.run.run import START, Run
from tests.elder.records import make_record

REASON = "The pruned over dense perplexity out of domain is 2, which exceeds the most allowed, 1.5."


def record(mode: str, passed: bool) -> Record:
    rules: list[dict[str, Any]] = []
    for rule, held, reason in (("speed", True, "fine"), ("perplexity", passed, REASON)):
        rules.append(
            {
                "rule": rule,
                "value": None,
                "limit": None,
                "passed": held,
                "reason": reason,
            }
        )
    whole = make_record()
    for row, value in zip(whole["rows"], (4.0, float("inf")), strict=False):
        row["perplexity"]["out_of_domain"]["perplexity"] = value
    return Record.model_validate(
        whole
        | {
            "run_id": "r1",
            "model_version": "7" if passed or mode != "on" else None,
            "gate": {"mode": mode, "passed": passed, "rules": rules},
            "report": "runs/r1/report.html",
        }
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Return what a webhook would be told."""
    got: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(
        run.notify, "notify", lambda _, event, message: got.append((event, message))
    )
    return got


def end(monkeypatch: pytest.MonkeyPatch, ending: Record | BaseException) -> Record:
    """Run with the flow replaced by its end."""

    def stand_in(
        settings: Params, root: Path, method: str, told: dict[str, Any]
    ) -> Record:
        told["run_id"] = "r1"
        if isinstance(ending, BaseException):
            raise ending
        return ending

    monkeypatch.setattr(run, "_run", stand_in)
    return run.run_compression(Params(), Path(), "default")


@pytest.mark.parametrize(
    ("mode", "passed", "event", "version"),
    [
        ("on", True, "success", "7"),
        ("on", False, "refusal", None),
        ("dry-run", False, "success", "7"),
    ],
)
def test_an_end_is_told_with_what_matters(
    monkeypatch: pytest.MonkeyPatch,
    told: list,
    mode: str,
    passed: bool,
    event: str,
    version: str | None,
) -> None:
    end(monkeypatch, record(mode, passed))
    message = {
        "run_id": "r1",
        "name": Params().registry.name,
        "version": version,
        "gate": {"mode": mode, "passed": passed, "reasons": [] if passed else [REASON]},
        "perplexity": {"dense": 4.0, "pruned": None},  # infinity is no JSON
        "report": "runs/r1/report.html",
    }
    assert told == [(event, message)]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            UserError("postgresql://me:hunter2@db/x cannot be reached"),
            "postgresql://db/x cannot be reached",
        ),
        (
            RuntimeError("stage learn was killed by signal 9"),
            "RuntimeError: stage learn was killed by signal 9",
        ),
    ],
)
def test_a_failure_is_told_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, told: list, error: Exception, said: str
) -> None:
    with pytest.raises(type(error)):
        end(monkeypatch, error)
    assert told == [
        ("failure", {"run_id": "r1", "name": Params().registry.name, "error": said})
    ]


def test_a_run_holds_the_projects_turn_and_leaves_no_server(
    monkeypatch: pytest.MonkeyPatch, told: list, tmp_path: Path
) -> None:
    watched: list[str] = []

    def stand_in(started: Run) -> Record:
        assert watched == ["watched", "started"]
        with pytest.raises(Timeout):
            FileLock(tmp_path / "runs" / LOCK).acquire(timeout=0)
        assert (
            json.loads((tmp_path / "runs" / HOLDER).read_text())["run_id"]
            == started.run_id
        )
        return record("on", True)

    monkeypatch.setattr(
        run, "find_model", lambda _: FoundModel("models/tiny", None, "llama", 4)
    )
    monkeypatch.setattr(run, "fitted", lambda settings: settings)
    monkeypatch.setattr(run, "require", lambda *_: None)
    monkeypatch.setattr(
        run, "end_server_with_this_process", lambda: watched.append("watched")
    )
    monkeypatch.setattr(run, "_start_server", lambda: watched.append("started"))
    monkeypatch.setattr("flows.compress.compress_and_register", stand_in)
    run.run_compression(Params(), tmp_path, "default")
    FileLock(tmp_path / "runs" / LOCK).acquire(timeout=0)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError(
            "Timed out while attempting to connect to ephemeral Prefect API server."
        ),
        ReadTimeout("timed out"),
    ],
)
def test_a_server_that_does_not_start_ends_a_run_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, told: list, tmp_path: Path, fault: Exception
) -> None:
    def stand_in(_: SubprocessASGIServer) -> None:
        raise fault

    monkeypatch.setattr(
        run, "find_model", lambda _: FoundModel("models/tiny", None, "llama", 4)
    )
    monkeypatch.setattr(run, "fitted", lambda settings: settings)
    monkeypatch.setattr(run, "require", lambda *_: None)
    monkeypatch.setattr(run, "end_server_with_this_process", lambda: None)
    monkeypatch.setattr(SubprocessASGIServer, "start", stand_in)
    with pytest.raises(UserError, match="did not answer within 120 seconds") as caught:
        run.run_compression(Params(), tmp_path, "default")
    assert "PREFECT_API_URL" in str(caught.value)
    assert [event for event, _ in told] == ["failure"]


def test_a_run_first_marks_what_was_killed_before_it_as_crashed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []

    def stand_in(run_ids: list[str]) -> None:
        told.extend(run_ids)
        raise KeyboardInterrupt  # what follows is the run itself

    own = "20261124-020002-abcdef12-000000"
    opened = SimpleNamespace(settings=Params(), root=tmp_path, run_id=own)
    monkeypatch.setattr("flows.compress.ensure_gpu_limit", lambda: None)
    monkeypatch.setattr("flows.compress.crash_abandoned", stand_in)
    for name in ("20261124-020000-abcdef12-000000", "20261124-020001-abcdef12-000000"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / START).write_text("{}")
    (tmp_path / "runs" / name / FINISHED).write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        do_all(cast("Run", opened))
    assert told == [own, "20261124-020000-abcdef12-000000"]


def test_a_server_that_is_gone_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(_: Run) -> None:
        raise ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr("flows.compress.compress_and_register", gone)
    monkeypatch.setattr("flows.run.Registry", Mock())
    with pytest.raises(UserError, match=r"run r1 answers no more \(ConnectError\)"):
        run._run_flow(cast("Run", SimpleNamespace(settings=Params(), run_id="r1")))


def test_what_fails_after_the_order_to_end_is_no_fault(tmp_path: Path) -> None:
    code = """
import os, signal
from elder.cli.app import build_app
from elder.cli.services import Services
from elder.process import end_when_told

def ends(*_):
    end_when_told()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise RuntimeError("a server that ended first") from None

build_app(Services(ends, ends, ends))(["select", "x", "--layers", "2"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("interrupted: nothing was left")
    assert "Traceback" not in done.stderr


SERVER_COMPLAINS = """
import logging
from flows.environment import prepare_environment
prepare_environment()
from prefect.logging.configuration import setup_logging
setup_logging()
logging.getLogger("prefect.server.services.task_run_recorder").error("Error flushing")
"""


def test_what_the_server_tries_again_is_no_news() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVER_COMPLAINS],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "flushing" not in done.stdout + done.stderr


def test_an_interruption_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, told: list
) -> None:
    with pytest.raises(KeyboardInterrupt):
        end(monkeypatch, KeyboardInterrupt())
    assert told == []


@pytest.mark.parametrize(
    ("mode", "passed", "name", "said"),
    [
        (
            "on",
            True,
            "Completed",
            f"run r1 registered {Params().registry.name} version 7",
        ),
        ("on", False, "Refused", f"the gate refused run r1: {REASON}"),
    ],
)
def test_a_refusal_has_a_state_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mode: str,
    passed: bool,
    name: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").touch()
    Path("params.yaml").touch()
    monkeypatch.setattr(nightly, "run_compression", lambda *_: record(mode, passed))
    state: State = nightly.nightly.fn()
    assert (state.type.value, state.name, state.message) == ("COMPLETED", name, said)
