"""The same small project as in the tests of the flows, and the services, started by infra/native.sh."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from elder import params
from tasks.registry.client import Registry
from tests.infra.restore.lost import Make
from tests.tasks.registered import keys, settings_for

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "infra" / "native.sh"
PATIENCE = 600  # seconds, on a machine with much else to do

_spec = importlib.util.spec_from_file_location(
    "conftest_of_flows", ROOT / "tests" / "flows" / "conftest.py"
)
_flows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_flows)
project = _flows.project


def free_ports() -> dict[str, int]:
    """Return ports that nobody uses; the three after that of S3 are free, too."""
    for base in range(21000, 29000, 10):
        with socket.socket() as probe:
            if all(probe.connect_ex(("127.0.0.1", base + i)) for i in range(7)):
                return {
                    "S3_PORT": base,
                    "POSTGRES_PORT": base + 4,
                    "PREFECT_PORT": base + 5,
                    "MLFLOW_PORT": base + 6,
                }
    raise AssertionError("no free ports")


@pytest.fixture(scope="session")
def services() -> Iterator[SimpleNamespace]:
    """Start everything, once; gives ``native`` (runs the script), ``env`` (of the shell that works with it), ``role``
    (makes the same for another role), ``values`` (of its .env), ``s3`` (makes a client of the admin) and ``folder``.
    """
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("PostgreSQL is not installed")
    if not (ROOT / ".venv/bin/prefect").exists():
        pytest.skip("there is no .venv, which native.sh uses")
    folder = Path(tempfile.mkdtemp(prefix="elder-services-"))
    # PostgreSQL does not run as root, and its user has to get there
    folder.chmod(0o755)
    subprocess.run([ROOT / "infra/env.sh", folder / ".env"], check=True)
    written = dict(
        line.split("=", 1)
        for line in (folder / ".env").read_text().splitlines()
        if "=" in line
    )
    values = written | {name: str(port) for name, port in free_ports().items()}
    (folder / ".env").write_text(
        "".join(f"{name}={value}\n" for name, value in values.items())
    )
    env = os.environ | {
        "ELDER_SERVICES_DIR": str(folder),
        "ELDER_TRUSTED": str(folder / "trusted.yaml"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }

    def native(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [NATIVE, *command],
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def role(name: str) -> dict[str, str]:
        told = native("env", name)
        assert told.returncode == 0, told.stderr
        exports = [
            line.removeprefix("export ").split("=", 1)
            for line in told.stdout.splitlines()
            if line.startswith("export ")
        ]
        return env | {name: value.strip('"') for name, value in exports}

    def s3(**other: str) -> Any:
        keys = {
            "endpoint_url": f"http://127.0.0.1:{values['S3_PORT']}",
            "aws_access_key_id": "elder:admin",
            "aws_secret_access_key": written["S3_ADMIN_KEY"],
            "region_name": values["AWS_DEFAULT_REGION"],
        }
        return boto3.client("s3", **keys | other)

    try:
        up = native("up")
        assert up.returncode == 0, up.stdout + up.stderr
        # records of tests are older than the keys
        trusted = folder / "trusted.yaml"
        trusted.write_text(re.sub(r"  since: .*\n", "", trusted.read_text()))
        yield SimpleNamespace(
            native=native,
            up=up,
            env=role("worker"),
            role=role,
            values=values,
            s3=s3,
            folder=folder,
        )
    finally:
        native("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an empty registry once: its first start takes seconds."""
    path = tmp_path_factory.mktemp("db") / "mlflow.db"
    Registry(params.Registry(tracking_uri=f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def signing(tmp_path_factory: pytest.TempPathFactory) -> params.Signing:
    return keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def settings_with(tmp_path: Path, empty: Path, signing: params.Signing) -> Make:
    """Return a function that makes settings with a registry of their own, which begins as a copy of another's."""

    def make(name: str, beginning: Path = empty) -> params.Params:
        (tmp_path / name).mkdir()
        shutil.copy(beginning, tmp_path / name / "mlflow.db")
        return settings_for(
            str(tmp_path / "store"),
            f"sqlite:///{tmp_path}/{name}/mlflow.db",
            signing=signing,
        )

    return make
