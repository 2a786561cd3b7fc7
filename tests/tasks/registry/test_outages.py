"""Registries that do not answer for a while: what is asked again, what is said, and that nothing is made twice."""

import sqlite3
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from sqlalchemy.exc import OperationalError, ProgrammingError
from werkzeug.serving import make_server

from elder import params
from elder.errors import UserError
from elder.record import Record
from tasks import retry
from tasks.errors import Unreachable
from tasks.registry import connection
from tasks.registry.client import Registry
from tasks.store.base import Published
from tests.tasks.registered import record
from tests.tasks.store.faulty import LOST, Fault, Faulty, Request, times

SECRET = "hunter2"
PUBLISHED = Published(
    url="s3://b/models/x", digest="0" * 64, files={}, uploaded_bytes=0
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELDER_PATIENCE", "5")
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.1)
    monkeypatch.setattr(retry, "_said", {})


@pytest.fixture(scope="module")
def served(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the database over HTTP, in this process."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patched.setenv(name, tracking)  # the server sets them for good
        patched.setenv("_MLFLOW_SERVER_FILE_STORE", tracking)
        patched.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patched.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        artifacts = str(tmp_path_factory.mktemp("artifacts"))
        patched.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", artifacts)
        patched.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
        from mlflow.server import app

        server = make_server("127.0.0.1", 0, app, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def relay(served: str) -> Iterator[Faulty]:
    made = Faulty(served)
    yield made
    made.close()


def settings(relay: Faulty, name: str) -> params.Registry:
    return params.Registry(tracking_uri=relay.url, name=name, experiment=name)


def run_of(run_id: str) -> Record:
    return Record.model_validate(record(10.0) | {"run_id": run_id})


def register(registry: Registry, run_id: str) -> str | None:
    """Do what a run does."""
    run = registry.start_run(run_id)
    registry.log_record(run, run_of(run_id))
    version = registry.register_version(run, run_of(run_id), PUBLISHED)
    registry.end_run(run)
    return version


def once(registry: Registry, run_id: str) -> bool:
    """Say whether there is one run and one version of it, as MLflow itself tells."""
    client = registry.client
    experiment = client.get_experiment_by_name(registry.name)
    runs = client.search_runs([experiment.experiment_id], f"tags.run_id = '{run_id}'")
    versions = client.search_model_versions(f"name = '{registry.name}'")
    return len(runs) == len(versions) == 1 and runs[0].info.status == "FINISHED"


@pytest.mark.parametrize(
    "fault",
    [Fault(status) for status in (429, 500, 502, 503, 504)] + [Fault(cut=0.0), LOST],
    ids=lambda fault: str(fault.status or fault.done),
)
def test_every_request_may_fail_twice(relay, request, capsys, fault):
    failed: dict[tuple[str, str], int] = {}

    def twice(asked: Request) -> Fault | None:
        what = (asked.method, asked.path)
        failed[what] = failed.get(what, 0) + 1
        return fault if failed[what] <= 2 else None

    relay.fault = twice
    name = f"twice-{fault.status}-{fault.done}"
    registry = Registry(settings(relay, name))
    assert register(registry, "a run") == "1"
    assert once(registry, "a run")
    said = capsys.readouterr().err
    assert f"MLflow at {relay.url}: it cannot be reached" in said
    assert "waiting, next try in" in said


@pytest.mark.parametrize("path", ["runs/create", "model-versions/create"])
def test_what_was_made_before_its_answer_got_lost_is_not_made_twice(relay, path):
    name = path.replace("/", "-")
    relay.fault = times(1, LOST, lambda asked: path in asked.path)
    registry = Registry(settings(relay, name))
    assert register(registry, "a run") == "1"
    assert once(registry, "a run")
    assert relay.count("POST", path) == 1


def test_a_server_that_stays_away_is_told_in_one_sentence(relay, monkeypatch):
    registry = Registry(settings(relay, "away"))
    monkeypatch.setenv("ELDER_PATIENCE", "0.2")
    relay.fault = lambda _: Fault(503)
    with pytest.raises(Unreachable) as caught:
        registry.start_run("a run")
    assert str(caught.value) == (
        f"MLflow at {relay.url}: it cannot be reached: start it, or correct registry.tracking_uri; it was tried for"
        " 0 seconds"
    )


def test_a_refusal_is_not_asked_again(relay):
    registry = Registry(settings(relay, "refused"))
    relay.seen.clear()
    relay.fault = lambda _: Fault(401)
    with pytest.raises(UserError, match="does not know this user"):
        registry.find_run("a run")
    assert len(relay.seen) == 1


def test_an_answer_that_breaks_off_is_asked_again(relay):
    registry = Registry(settings(relay, "broken"))
    relay.fault = times(3, Fault(cut=0.5), lambda _: True)
    assert register(registry, "a run") == "1"
    assert once(registry, "a run")


def test_a_database_file_that_somebody_holds_is_waited_for(tracking, capsys):
    path = tracking.removeprefix("sqlite:///")
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    threading.Timer(1.5, holder.execute, ("ROLLBACK",)).start()
    Registry(params.Registry(tracking_uri=tracking, name="held"))
    assert "somebody holds the database" in capsys.readouterr().err
    holder.close()


def from_database(text: str, kind: type[Exception] = OperationalError) -> Exception:
    """Return what MLflow makes of a database's error."""
    cause = kind("SELECT 1", {}, Exception(text))
    error = MlflowException(cause, error_code=TEMPORARILY_UNAVAILABLE)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "text",
    [
        "database is locked",
        "database table is locked",
        "server closed the connection unexpectedly",
        "terminating connection due to administrator command",
        "the database system is starting up",
        "connection to server at x, port 5432 failed: Connection refused",
        "sorry, too many clients already",
        "SSL SYSCALL error: EOF detected",
        "(2013, 'Lost connection to MySQL server during query')",
    ],
)
def test_what_passes_by_itself(monkeypatch, text):
    answers: list[Any] = [from_database(text), from_database(text), ["a run"]]

    def search() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = connection.PatientClient(SimpleNamespace(search=search), "MLflow at x")
    assert client.search() == ["a run"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("attempt to write a readonly database", OperationalError),
        ("no such table: runs", OperationalError),
        ('FATAL: password authentication failed for user "x"', OperationalError),
        ("could not extend file: No space left on device", OperationalError),
        ("relation runs does not exist", ProgrammingError),
    ],
)
def test_what_does_not_pass_by_itself(text, kind):
    calls: list[int] = []

    def search() -> None:
        calls.append(1)
        raise from_database(text, kind)

    client = connection.PatientClient(SimpleNamespace(search=search), "MLflow at x")
    with (
        pytest.raises(UserError) as caught,
        connection.plain_refusals(params.Registry()),
    ):
        client.search()
    assert not isinstance(caught.value, Unreachable)
    assert len(calls) == 1


def test_a_closed_database_is_given_up_after_the_patience(monkeypatch, capsys):
    monkeypatch.setenv("ELDER_PATIENCE", "0.3")
    uri = f"postgresql+psycopg://elder:{SECRET}@127.0.0.1:9/mlflow"
    with pytest.raises(Unreachable, match="the database cannot be reached") as caught:
        Registry(params.Registry(tracking_uri=uri))
    assert SECRET not in str(caught.value) + capsys.readouterr().err


def test_creating_is_left_to_those_who_look_first():
    calls: list[int] = []

    def create_run() -> None:
        calls.append(1)
        raise from_database("database is locked")

    bare = SimpleNamespace(create_run=create_run)
    with pytest.raises(Unreachable):
        connection.PatientClient(bare, "MLflow at x").create_run()
    assert len(calls) == 1


def test_of_several_versions_of_a_run_the_first_counts(relay):
    """As when a proxy gave up and the server did not."""
    registry = Registry(settings(relay, "several"))
    run = registry.start_run("a run")
    first = registry.register_version(run, run_of("a run"), PUBLISHED)
    tags = {"digest": PUBLISHED.digest}
    registry.client.create_model_version("several", "s3://b/x", run_id=run, tags=tags)
    assert registry.register_version(run, run_of("a run"), PUBLISHED) == first == "1"
