"""A PostgreSQL server of our own, in a folder, that can be restarted while others are at work with it."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
USER = "postgres"


def installed() -> bool:
    """Say whether there is a PostgreSQL here."""
    return bool(BINARIES or shutil.which("initdb"))


class Postgres:
    """A server on loopback, with no password; it keeps nothing safe, as nothing has to outlive this machine."""

    def __init__(self, folder: Path) -> None:
        found = BINARIES[-1].parent if BINARIES else Path(shutil.which("initdb")).parent
        self.bin, self.data, self.log = found, folder / "data", folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        self._run("initdb", "-D", self.data, "-U", USER, "-A", "trust", "-N")
        self.start()

    def start(self) -> None:
        """Start it."""
        options = f"-h 127.0.0.1 -p {self.port} -k '' -F -c max_connections=200"
        place = ["-D", self.data, "-l", self.log, "-w", "-s"]
        self._run("pg_ctl", *place, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: ``fast`` hangs up on everybody, ``immediate`` is like a crash."""
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "-s", "stop")

    def restart(self, mode: str) -> None:
        """Stop it and start it again."""
        self.stop(mode)
        self.start()

    def runs(self) -> bool:
        """Say whether it runs."""
        command = [self.bin / "pg_ctl", "-D", self.data, "status"]
        return self._try(command).returncode == 0

    def url(self, database: str) -> str:
        """Return the address of a database, as MLflow takes it."""
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{database}"

    def copy(self, source: str, target: str) -> None:
        """Make a database anew as a copy of another."""
        self._sql(f"DROP DATABASE IF EXISTS {target} WITH (FORCE)")
        for _ in range(50):
            hang_up = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{source}'"
            self._sql(hang_up)
            try:
                return self._sql(f"CREATE DATABASE {target} TEMPLATE {source}")
            except subprocess.CalledProcessError:  # somebody is still connected
                time.sleep(0.1)
        raise RuntimeError(f"the database {source} is never left alone")

    def _sql(self, statement: str) -> None:
        place = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", USER]
        self._run("psql", *place, "-q", "-v", "ON_ERROR_STOP=1", "-c", statement)

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = self._try([self.bin / program, *arguments])
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, program)

    def _try(self, command: list[str | Path]) -> subprocess.CompletedProcess[bytes]:
        if os.geteuid() == 0:
            command = ["runuser", "-u", USER, "--", *command]
        # a server holds on to the output that it was started with
        nowhere = subprocess.DEVNULL
        return subprocess.run(
            command, stdin=nowhere, stdout=nowhere, stderr=nowhere, cwd="/", check=False
        )
