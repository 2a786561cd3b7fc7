"""The pipeline on real services, nothing mocked: PostgreSQL, Prefect server and worker, MLflow server, S3 server.

The tests of this file run in order, and after those of the other files that use the services: the last one stops them.
"""

import json
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from botocore.exceptions import ClientError

from tasks.store.open import open_store
from tests.infra.people import Person

ROOT = Path(__file__).parents[2]
ELDER = [sys.executable, "-c", "from flows.cli import main; main()"]
PATIENCE = 600  # seconds, on a machine with much else to do
SECRETS = (
    "PASSWORD",
    "SECRET",
    "AUTH_STRING",
    "S3_ADMIN",
    "S3_MLFLOW",
    "S3_WORKER",
    "S3_PROMOTER",
    "S3_AUDITOR",
)

pytestmark = pytest.mark.timeout(2 * PATIENCE)


def elder(services: SimpleNamespace, project: Path, *arguments: str) -> SimpleNamespace:
    """Run a command with --json in the project; returns its status and its object."""
    done = subprocess.run(
        [*ELDER, *arguments, "--json"],
        cwd=project,
        env=services.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return SimpleNamespace(status=done.returncode, json=json.loads(done.stdout))


def prefect(services: SimpleNamespace, project: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(
        command,
        cwd=project,
        env=services.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    log = (services.folder / ".native/logs/worker.log").read_text()[-5000:]
    assert done.returncode == 0, done.stdout + done.stderr + log
    return done.stdout


def test_up_starts_all_and_a_second_up_changes_nothing(
    services: SimpleNamespace,
) -> None:
    for name in ("postgres", "s3", "prefect", "mlflow", "worker"):
        assert [
            line.split()[-1]
            for line in services.up.stdout.splitlines()
            if line.startswith(f"{name} ")
        ] == ["answers"]
    pids = {
        path.name: path.read_text()
        for path in (services.folder / ".native").glob("*.pid")
    }
    assert len(pids) == 7  # four of Swift, Prefect, MLflow, worker
    again = services.native("up")
    assert again.returncode == 0, again.stderr
    assert {
        path.name: path.read_text()
        for path in (services.folder / ".native").glob("*.pid")
    } == pids


def test_nobody_gets_in_without_a_password(services: SimpleNamespace) -> None:
    for address in (
        services.env["PREFECT_API_URL"] + "/work_pools/elder",
        services.env["MLFLOW_TRACKING_URI"]
        + "/api/2.0/mlflow/experiments/get-by-name?experiment_name=elder",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address, timeout=30)
        assert refused.value.code == 401
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        services.s3(aws_secret_access_key="wrong").list_objects_v2(Bucket="elder")


def test_doctor_finds_every_part(services: SimpleNamespace, project: Path) -> None:
    found = elder(services, project, "doctor")
    checks = {check["name"]: check["detail"] for check in found.json["checks"]}
    assert found.status == 0, checks
    assert checks["store"] == "s3://elder/store"
    assert checks["history"] == (
        "s3://elder-history: these credentials cannot write there"
    )
    assert checks["registry"] == services.env["MLFLOW_TRACKING_URI"]
    assert checks["worker"] == "work pool 'elder' has a live worker"


def test_a_worker_runs_the_flow_and_registers_a_challenger(
    services: SimpleNamespace, project: Path
) -> None:
    shutil.copy(ROOT / "prefect.yaml", project)
    remote = ("remote", "add", "-d", "data", "s3://elder/dvc")
    endpoint = (
        "remote",
        "modify",
        "data",
        "endpointurl",
        f"http://127.0.0.1:{services.values['S3_PORT']}",
    )
    for arguments in (remote, endpoint):
        subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=project,
            check=True,
            capture_output=True,
        )
    prefect(services, project, "deploy", "-n", "nightly")
    short = 'overrides=["evaluate.baselines=[]"]'
    waiting = ("--watch", "--watch-timeout", str(PATIENCE))
    told = prefect(
        services,
        project,
        "deployment",
        "run",
        "nightly/nightly",
        "--param",
        short,
        *waiting,
    )
    assert "Completed" in told

    from mlflow import MlflowClient

    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "MLFLOW_TRACKING_USERNAME",
            "MLFLOW_TRACKING_PASSWORD",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
        ):
            patch.setenv(name, services.env[name])
        client = MlflowClient(tracking_uri=services.env["MLFLOW_TRACKING_URI"])
        version = client.get_model_version_by_alias("tiny", "challenger")
        assert version.version == "1"
        assert version.source.startswith("s3://elder/store/models/tiny/")
        record = json.loads(
            Path(client.download_artifacts(version.run_id, "record.json")).read_text()
        )
        assert record["gate"]["passed"] is True
        url = f"http://127.0.0.1:{services.values['S3_PORT']}"
        assert (
            open_store("s3://elder/store", url, "us-east-1").verify(version.source)
            == []
        )
    artifacts = {
        item["Key"].rsplit("/", 1)[-1]
        for item in services.s3().list_objects_v2(Bucket="elder-mlflow")["Contents"]
    }
    assert {"record.json", "report.html"} <= artifacts


def test_a_promoter_decides_on_it_and_an_auditor_looks(
    services: SimpleNamespace, project: Path
) -> None:
    """The worker itself cannot; whoever audits needs no key, and no right to write."""
    worker, promoter, auditor = (
        Person(services, role, project) for role in ("worker", "promoter", "auditor")
    )
    refused = worker.decide("promote", "tiny", "1")
    assert refused.returncode == 2
    assert "is not trusted with decisions on models" in refused.stderr
    promoted = promoter.decide("promote", "tiny", "1")
    assert promoted.returncode == 0, promoted.stderr
    audited = auditor.elder("audit", "tiny@champion", "--json")
    checks = {check["name"]: check for check in json.loads(audited.stdout)["checks"]}
    assert audited.returncode == 0, checks
    assert checks["signature"]["ok"] is True
    # and MLflow alone finds the store, by what the role's environment says
    fetched = subprocess.run(
        [sys.executable, "-m", "mlflow", "artifacts", "download"]
        + ["--artifact-uri", "models:/tiny@champion", "--dst-path", "copy"],
        env=services.role("auditor"),
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert fetched.returncode == 0, fetched.stderr
    assert (project / "copy" / "model.sig").is_file()
    shutil.rmtree(project / "copy")


def test_postgresql_holds_the_registry(services: SimpleNamespace) -> None:
    import psycopg

    address = f"host=127.0.0.1 port={services.values['POSTGRES_PORT']} dbname=mlflow user=mlflow"
    with psycopg.connect(
        f"{address} password={services.values['MLFLOW_DB_PASSWORD']}"
    ) as connection:
        rows = connection.execute(
            "select version from model_versions where name = 'tiny'"
        ).fetchall()
    assert rows == [(1,)]
    with pytest.raises(psycopg.OperationalError, match="authentication"):
        psycopg.connect(f"{address} password=wrong").close()


def test_a_second_machine_gets_the_same_data_by_digest(
    services: SimpleNamespace, project: Path, tmp_path: Path
) -> None:
    digests = {
        out["path"]: out["md5"]
        for stage in yaml.safe_load((project / "dvc.lock").read_text())[
            "stages"
        ].values()
        for out in stage["outs"]
    }
    other = tmp_path / "other"
    left_out = shutil.ignore_patterns("cache", "tmp", "build", "runs", "keys", "models")
    shutil.copytree(project, other, ignore=left_out)
    assert not (other / "build").exists()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "pull"],
        cwd=other,
        env=services.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(digests) == 9
    for path in digests:
        assert (other / path).read_bytes() == (project / path).read_bytes()


def test_no_secret_is_in_a_log_or_in_the_arguments_of_a_process(
    services: SimpleNamespace,
) -> None:
    values = services.values.items()
    secrets = [
        value.rpartition(":")[2]
        for name, value in values
        if any(kind in name for kind in SECRETS)
    ]
    assert len(secrets) == 15
    texts = {
        str(path): path.read_bytes()
        for path in (services.folder / ".native/logs").iterdir()
    }
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts[str(process)] = process.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
    for secret in secrets:
        assert [name for name, text in texts.items() if secret.encode() in text] == []
    assert (services.folder / ".env").stat().st_mode & 0o077 == 0


def test_down_stops_all_and_doctor_names_each_part(
    services: SimpleNamespace, project: Path
) -> None:
    assert services.native("down").returncode == 0
    for name in ("S3_PORT", "POSTGRES_PORT", "PREFECT_PORT", "MLFLOW_PORT"):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(services.values[name]))) != 0
    assert services.native("status").returncode == 1
    found = elder(services, project, "doctor")
    missing = {
        check["name"]: check["detail"]
        for check in found.json["checks"]
        if not check["ok"]
    }
    assert found.status == 1
    assert set(missing) == {
        "store",
        "history",
        "registry",
        "prefect",
        "worker",
        "data remote",
    }
    assert "cannot be reached" in missing["store"]
    assert "cannot be reached: start it" in missing["registry"]
    assert "does not answer; start it" in missing["prefect"]
    assert "start it, or correct url and endpointurl" in missing["data remote"]
