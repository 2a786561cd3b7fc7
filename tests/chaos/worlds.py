"""Small worlds that commands run in: a project, its store and its registry; each trial begins with a fresh copy of one.

All copies lie in the same place, since registries and records hold absolute paths. Where there are services, the store
is on S3 and the registry in PostgreSQL; otherwise both lie in the project's folder.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import driver, forks, looking
from tests.chaos.forks import Ending
from tests.chaos.looking import State
from tests.chaos.services import s3
from tests.chaos.services.disk import Disk
from tests.chaos.services.postgres import Postgres
from tests.conftest import QUIET

BUCKET, DATABASE = "chaos", "chaos"
REPLAY = "replay.pkl"  # beside the project, where a run was stopped before its end
ENVIRONMENT = QUIET | {
    "ELDER_PATIENCE": "300",  # seconds, as where nothing is set; they pass quickly here
    "AWS_ACCESS_KEY_ID": "chaos",
    "AWS_SECRET_ACCESS_KEY": "chaos",
    "AWS_EC2_METADATA_DISABLED": "true",
    "ELDER_USER": "chaos@here",
}
Arm = Callable[[], Any]  # called in the child, before the command


def nothing() -> None:
    """Arm nothing."""


@dataclass
class World:
    """Where commands run.

    Attributes:
        place: of templates and of what commands print.
        disk: where the project lies.
        server: of the store; None: it is a folder.
        postgres: of the registry; None: it is an SQLite file.
    """

    place: Path
    disk: Disk
    server: s3.Server | None = None
    postgres: Postgres | None = None

    @property
    def project(self) -> Path:
        """Return the folder that commands are given in."""
        return self.disk.folder / "project"

    @property
    def name(self) -> str:
        """Return what the services are."""
        return "S3 and PostgreSQL" if self.server else "folder and SQLite"

    @property
    def overrides(self) -> list[str]:
        """Return what differs from the project's parameters."""
        if not (self.server and self.postgres):
            return []
        return [
            f"store.url=s3://{BUCKET}/store",
            f"store.endpoint={self.server.endpoint}",
            "store.region=us-east-1",
            f"registry.tracking_uri={self.postgres.url(DATABASE)}",
        ]

    def run(self, *command: str, arm: Arm = nothing, kill_after: float = 0.0) -> Ending:
        """Run a command of ``elder`` in a child.

        Args:
            command: its words.
            arm: prepares what is to go wrong.
            kill_after: seconds until it is killed; 0: never.
        """
        work = self.prepared(lambda: driver.elder(*command), arm)
        return forks.run(work, self.place / "output", kill_after)

    def prepared(self, work: Arm, arm: Arm = nothing) -> Arm:
        """Return work for a child, in the project and in the environment that commands have here."""

        def begin() -> None:
            self._enter()
            driver.let_time_fly()
            driver.checkpoint_always()
            s3.be_impatient()
            found = self.disk.folder / REPLAY
            replay = driver.read_replay(found) if found.exists() else driver.Replay()
            driver.without_prefect(replay)
            arm()
            work()

        return begin

    def ask(self, work: Callable[[], Any]) -> Any:
        """Return what a function returns in a child that stands in the project."""

        def begin() -> Any:
            self._enter()
            return work()

        return forks.ask(begin, self.place)

    def look(self) -> State:
        """Return what readers see now."""
        return self.ask(looking.look)

    def save(self, template: str) -> None:
        """Keep what is there under a name."""
        folder = self.place / "templates" / template
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.disk.folder, folder / "disk", symlinks=True)
        if self.server and self.postgres:
            self.ask(lambda: _download(self._client(), folder / "s3"))
            self.postgres.copy(DATABASE, _database(template))

    def reset(self, template: str) -> None:
        """Begin anew with what was kept under a name."""
        folder = self.place / "templates" / template
        driver.empty(self.disk.folder)
        shutil.copytree(
            folder / "disk", self.disk.folder, symlinks=True, dirs_exist_ok=True
        )
        if self.server and self.postgres:
            self.server.be_well()
            if not self.postgres.runs():
                self.postgres.start()
            self.postgres.copy(_database(template), DATABASE)
            self.server.forget()
            self.ask(lambda: _upload(self._client(), folder / "s3"))

    def begin(self) -> None:
        """Make the services' bucket and database."""
        if self.server and self.postgres:
            self.postgres.copy("template1", DATABASE)
            self.ask(lambda: self._client().create_bucket(Bucket=BUCKET) and None)

    def _enter(self) -> None:
        os.environ.update(ENVIRONMENT)
        os.environ["ELDER_SET"] = " ".join(self.overrides)
        os.chdir(self.project if self.project.exists() else self.disk.folder)

    def _client(self) -> Any:
        import boto3

        assert self.server
        return boto3.client(
            "s3", endpoint_url=self.server.endpoint, region_name="us-east-1"
        )


def _database(template: str) -> str:
    return f"template_{template}"


def _download(client: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    listed = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
    for number, item in enumerate(listed):
        at = {"Bucket": BUCKET, "Key": item["Key"]}
        found = client.get_object(**at)
        lines = [item["Key"], found["Metadata"].get("sha256", "")]
        (folder / f"{number}.name").write_text("\n".join(lines))
        (folder / f"{number}.body").write_bytes(found["Body"].read())


def _upload(client: Any, folder: Path) -> None:
    client.create_bucket(Bucket=BUCKET)
    for name in folder.glob("*.name"):
        key, _, sha256 = name.read_text().partition("\n")
        metadata = {"sha256": sha256} if sha256 else {}
        body = name.with_suffix(".body").read_bytes()
        client.put_object(Bucket=BUCKET, Key=key, Body=body, Metadata=metadata)
