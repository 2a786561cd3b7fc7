"""A PostgreSQL server that is restarted, or drops its connections, in the middle of a run."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from elder import params
from tasks import retry
from tasks.registry.client import Registry
from tests.tasks.registry.test_outages import PUBLISHED, once, register, run_of

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = pytest.mark.skipif(not BINARIES, reason="PostgreSQL is not installed")


@dataclass
class Postgres:
    """A cluster of its own, which listens on loopback alone."""

    folder: Path
    port: int

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def control(self, *words: str) -> None:
        # it refuses to run as root
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -F"
        command = [BINARIES[-1] / "pg_ctl", "-D", self.folder / "data", "-w", *words]
        start = ["-o", options, "-l", self.folder / "log"] if "start" in words else []
        subprocess.run(
            [*user, *command, *start], check=True, cwd="/", stdout=subprocess.DEVNULL
        )

    def drop_connections(self) -> None:
        """Do what an administrator does, and a proxy between."""
        engine = create_engine(self.uri)
        with engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
            )
        engine.dispose()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="elder-pg-"))
    folder.chmod(0o777)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        made = Postgres(folder, probe.getsockname()[1])
    made.control("init", "-o", "-U postgres -A trust -E UTF8 --no-sync")
    made.control("start")
    yield made
    made.control("stop", "-m", "immediate")
    shutil.rmtree(folder)


@pytest.fixture
def registry(
    postgres: Postgres, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Registry:
    monkeypatch.setenv("ELDER_PATIENCE", "60")
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.5)
    monkeypatch.setattr(retry, "_said", {})
    name = request.node.name.replace("_", "-")[:40]
    return Registry(
        params.Registry(tracking_uri=postgres.uri, name=name, experiment=name)
    )


def test_a_restart_is_waited_for(postgres, registry, capsys):
    run = registry.start_run("a run")
    postgres.control("stop", "-m", "immediate")
    threading.Timer(2.0, postgres.control, ("start",)).start()
    assert registry.register_version(run, run_of("a run"), PUBLISHED) == "1"
    registry.end_run(run)
    assert once(registry, "a run")
    said = capsys.readouterr().err
    assert "the connection to the database broke" in said
    assert "waiting, next try in" in said
    assert "Traceback" not in said


def test_a_server_that_is_not_up_yet(postgres, registry, capsys):
    postgres.control("stop", "-m", "fast")
    threading.Timer(2.0, postgres.control, ("start",)).start()
    again = Registry(registry.settings)
    assert register(again, "a run") == "1"
    assert "the database cannot be reached" in capsys.readouterr().err


def test_connections_that_are_dropped_all_the_time(postgres, registry):
    done = threading.Event()

    def drop() -> None:
        while not done.is_set():
            postgres.drop_connections()
            time.sleep(0.05)

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        versions = [register(registry, "a run") for _ in range(3)]
    finally:
        done.set()
        thread.join()
    assert versions == ["1", "1", "1"]
    assert once(registry, "a run")
