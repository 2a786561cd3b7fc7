"""Promotion by approval on a real Prefect server: the flow waits in one process, the form is filled in from another."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from elder import params
from tasks.provenance.identity import Identity
from tasks.registry import promotion
from tasks.registry.client import Registry
from tests.flows.waiting import wait_for
from tests.tasks.registered import keys, record, register, settings_for

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds that anything here may take on a machine with much else to do
FLOWS = """
import json, sys
from flows.promote import promote
for values in json.loads(sys.argv[1]):
    state = promote(**values, return_state=True)
    print(json.dumps([state.type.value, state.name, state.message]), flush=True)
"""


@contextmanager
def running(command: list[str], place: Path, url: str) -> Iterator[Callable[[], Any]]:
    """Start a process that prints a JSON a line; yields what reads the next one. It does not outlive a failed check."""
    env = os.environ | {"PREFECT_API_URL": url, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=place, env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            lines = process.stdout
            yield lambda: json.loads(lines.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    """Start a Prefect server and return a client of it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    url = f"http://127.0.0.1:{port}/api"

    def health() -> bool:
        try:
            return urlopen(f"{url}/health", timeout=5).status == 200
        except OSError:
            return False

    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    with (tmp_path_factory.mktemp("logs") / "server").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(health, "Prefect server", PATIENCE)
        with (
            temporary_settings({PREFECT_API_URL: url}),
            get_client(sync_client=True) as made,
        ):
            yield made
    finally:
        server.terminate()
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> params.Params:
    """Register two versions in the registry of a project's folder, the first of them champion."""
    place = tmp_path_factory.mktemp("project")
    uri = f"sqlite:///{place}/mlflow.db"
    made = settings_for(str(place / "store"), uri, signing=keys(place / "keys"))
    Registry(made.registry)
    for number, perplexity in ((1, 20.0), (2, 19.0)):
        register(made, place / f"model {number}", record(perplexity))
    plan = promotion.plan_promotion(made, place, "tiny", "1")
    anna = Identity("anna@host", "operating system")
    promotion.carry_out(made, place, plan, anna, "it is the first")
    sections = ("store", "registry", "signing")
    (place / "params.yaml").write_text(
        json.dumps({name: getattr(made, name).model_dump() for name in sections})
    )
    return made


def champions(settings: params.Params) -> list[tuple[str, str, str]]:
    place = Path(settings.store.url).parent
    history, faults = promotion.history_of(settings, place, "tiny")
    log = history.entries
    assert faults == []
    holder = Registry(settings.registry).holder("champion")
    assert holder
    assert holder[0] == log[-1].version
    return [(entry.version, entry.comment, entry.reason) for entry in log]


def paused(client: SyncPrefectClient, seen: list[Any]) -> Any:
    """Return the id of the flow run that waits for an answer and was not seen yet, once its form is there."""

    def find() -> Any:
        for run in client.read_flow_runs():
            waits = run.id not in seen and run.state and run.state.is_paused()
            if waits and client.filter_flow_run_input(run.id, "paused", 10, set()):
                return run
        return None

    found = wait_for(find, "paused run", PATIENCE)
    seen.append(found.id)
    return found


def test_only_an_approval_moves_the_champion(
    client: SyncPrefectClient, settings: params.Params
) -> None:
    asked = {"name": "tiny", "version": 2}
    command = [
        sys.executable,
        "-c",
        FLOWS,
        json.dumps([asked, asked | {"hours": 0.001}, asked, asked]),
    ]
    url = str(client.api_url).rstrip("/")
    seen: list[Any] = []
    with running(command, Path(settings.store.url).parent, url) as next_end:
        run = paused(client, seen)
        assert run.name == "tiny version 2"
        no = {"approve": False, "reason": "not before the holidays", "by": "ben"}
        resume_flow_run(run.id, run_input=no)
        assert next_end() == [
            "COMPLETED",
            "Declined",
            "ben: not before the holidays; nothing was changed",
        ]
        # the server may look first
        assert next_end()[:2] in (["COMPLETED", "Expired"], ["FAILED", "Failed"])
        assert [version for version, *_ in champions(settings)] == ["1"]

        run = paused(client, seen)
        for wrong in (
            {"approve": "perhaps"},
            {"approve": True, "reason": "better"},
            {"approve": True, "reason": ""},
        ):
            with pytest.raises(RuntimeError, match="Cannot resume this run"):
                resume_flow_run(run.id, run_input=wrong)
        assert [version for version, *_ in champions(settings)] == ["1"]
        resume_flow_run(
            run.id,
            run_input={"approve": True, "reason": "better on our texts", "by": "ben"},
        )
        assert next_end() == [
            "COMPLETED",
            "Completed",
            "tiny: champion is version 2, it was 1",
        ]
        assert champions(settings) == [
            ("1", None, "it is the first"),
            ("2", "the form says: ben", "better on our texts"),
        ]

        kind, _, said = next_end()  # the same once more
        assert kind == "FAILED"
        assert "version 2 of tiny is the champion already" in said
