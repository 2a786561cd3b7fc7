"""What `elder doctor` says of services that do not answer, refuse, or are not whole; that they do is in tests/infra."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from elder.errors import UserError
from elder.params import Params
from elder.settings import load_params
from flows.checks import services

SECRET = "hunter2"
CLOSED = "127.0.0.1:9"  # nobody listens on the port of the discard protocol
Serve = Callable[[dict[str, tuple[int, object]]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers {path: (status, object)}, and 401 to all else; returns its address."""
    servers = []

    def start(answers: dict[str, tuple[int, object]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, body = answers.get(
                    self.path.partition("?")[0], (401, "Unauthorized")
                )
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def said(part: Callable[[Params, Path], str], root: Path, **values: str) -> str:
    """Return the sentence with which a part is refused."""
    with pytest.raises(UserError) as refused:
        part(load_params(None, None, values), root)
    assert SECRET not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            f"postgresql+psycopg://elder:{SECRET}@{CLOSED}/mlflow",
            "the database cannot be reached; start it",
        ),
        (f"mysql://elder:{SECRET}@{CLOSED}/mlflow", "the database's driver is missing"),
        (
            f"postgresql+absent://elder:{SECRET}@{CLOSED}/mlflow",
            "the database's driver is missing",
        ),
    ],
)
def test_a_database_that_cannot_be_used(
    tmp_path: Path, uri: str, sentence: str
) -> None:
    assert sentence in said(
        services.registry, tmp_path, **{"registry.tracking_uri": uri}
    )


def test_an_mlflow_server_that_does_not_know_the_user(
    serve: Serve, tmp_path: Path
) -> None:
    values = {"registry.tracking_uri": serve({}), "store.url": "s3://bucket/x"}
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said(
        services.registry, tmp_path, **values
    )


def test_a_prefect_server_that_is_down_or_closed(serve: Serve, tmp_path: Path) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://{CLOSED}/api"}):
        assert "does not answer; start it, or unset PREFECT_API_URL" in said(
            services.prefect_server, tmp_path
        )
        assert "while the Prefect server does not answer" in said(
            services.worker, tmp_path
        )
    with temporary_settings(
        {PREFECT_API_URL: serve({"/api/health": (200, True)}) + "/api"}
    ):
        assert "lets nobody in without its PREFECT_API_AUTH_STRING; set it" in said(
            services.prefect_server, tmp_path
        )


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (
            "NOT_READY",
            "has no live worker, so nothing that is scheduled runs; start one: prefect worker start --pool elder",
        ),
        ("PAUSED", "is paused; resume it: prefect work-pool resume elder"),
        ("READY", "work pool 'elder' has a live worker"),
        (None, "no work pool 'elder'"),
    ],
)
def test_the_work_pool(
    serve: Serve, tmp_path: Path, status: str | None, sentence: str
) -> None:
    ids = {
        name: f"00000000-0000-0000-0000-00000000000{i}"
        for i, name in enumerate(("id", "default_queue_id"))
    }
    pool = {"name": "elder", "type": "process", "status": status} | ids
    answer = (200, pool) if status else (404, {"exception_message": "not found"})
    with temporary_settings(
        {PREFECT_API_URL: serve({"/api/work_pools/elder": answer}) + "/api"}
    ):
        if status in ("NOT_READY", "PAUSED"):
            assert sentence in said(services.worker, tmp_path)
        else:
            assert services.worker(Params(), tmp_path).startswith(sentence)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://elder/dvc\n    endpointurl = http://127.0.0.1:9", "nothing answers"),
        ("nonsense://elder", "correct .dvc/config"),
    ],
)
def test_the_data_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, sentence: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (tmp_path / ".dvc").mkdir()
    config = tmp_path / ".dvc" / "config"
    config.write_text("[core]\n    no_scm = true\n")
    assert services.data_remote(Params(), tmp_path).startswith("no DVC remote")
    config.write_text(
        f"[core]\n    no_scm = true\n    remote = data\n['remote \"data\"']\n    url = {url}\n"
    )
    assert sentence in said(services.data_remote, tmp_path)


def test_a_data_remote_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "remote").mkdir()
    config = f"[core]\n    no_scm = true\n    remote = data\n['remote \"data\"']\n    url = {tmp_path / 'remote'}\n"
    (tmp_path / ".dvc" / "config").write_text(config)
    assert str(tmp_path / "remote") in services.data_remote(Params(), tmp_path)
    assert list((tmp_path / "remote").rglob("*.write-check")) == []
