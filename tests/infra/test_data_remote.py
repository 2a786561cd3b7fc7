"""The DVC remote on an S3 server, over HTTP: pushed by a run, pulled by digest elsewhere, and changes that show."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from elder.errors import UserError
from elder.settings import load_params
from tasks.data import reproduce

pytestmark = pytest.mark.slow
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]


@pytest.fixture(scope="module")
def keys() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture(scope="module")
def cloned(project: Path, keys: None) -> Iterator[Path]:
    """Put the project under git, with a remote in a bucket, as docs/services.md says."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="elder")
    dvc(project, "remote", "add", "-d", "data", "s3://elder/dvc")
    dvc(project, "remote", "modify", "data", "endpointurl", endpoint)
    (project / ".gitignore").write_text("/build/\n__pycache__/\n")
    subprocess.run([*GIT, "init", "-q"], cwd=project, check=True)
    yield project
    server.stop()


def commit(project: Path) -> None:
    for command in (["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "now"]):
        subprocess.run([*GIT, *command], cwd=project, check=True)


def dvc(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(project: Path, **values: Any) -> dict[str, Any]:
    """Do what the first task of a run does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        return reproduce(load_params(project / "params.yaml", None, values), project)


def test_a_run_pushes_and_another_machine_pulls_the_same_bytes(
    cloned: Path, tmp_path: Path
) -> None:
    digests = run(cloned)["digests"]
    commit(cloned)
    other = tmp_path / "other"
    subprocess.run([*GIT, "clone", "-q", str(cloned), str(other)], check=True)
    assert not (other / ".dvc" / "cache").exists()
    dvc(other, "pull")
    pulled = {
        out["path"].removeprefix("build/data/"): out["md5"]
        for stage in yaml.safe_load((other / "dvc.lock").read_text())["stages"].values()
        for out in stage["outs"]
    }
    assert pulled == digests
    assert len(pulled) == 9
    for name in pulled:
        assert (other / "build/data" / name).read_bytes() == (
            cloned / "build/data" / name
        ).read_bytes()


def test_a_changed_parameter_shows(cloned: Path) -> None:
    before = run(cloned)["digests"]
    commit(cloned)
    dvc(cloned, "config", "--local", "core.no_scm", "false")
    text = (cloned / "params.yaml").read_text()
    (cloned / "params.yaml").write_text(text.replace("  seed: 0\n", "  seed: 1\n"))
    assert "calibration.seed" in dvc(cloned, "status")
    told = json.loads(dvc(cloned, "params", "diff", "--json"))["params.yaml"]
    assert list(told) == ["calibration.seed"]
    assert (told["calibration.seed"]["old"], told["calibration.seed"]["new"]) == (0, 1)
    after = run(cloned)["digests"]
    changed = json.loads(dvc(cloned, "diff", "--json"))["modified"]
    dvc(cloned, "config", "--local", "--unset", "core.no_scm")
    assert [out["path"] for out in changed] == ["build/data/calibration.safetensors"]
    assert {name for name in before if before[name] != after[name]} == {
        "calibration.safetensors"
    }


def test_parameters_of_one_run_are_pushed_too(cloned: Path, tmp_path: Path) -> None:
    """`--set` gives a run a pipeline of its own; what it made is in the remote all the same."""
    found = run(cloned, **{"calibration.seed": 7})
    shutil.rmtree(cloned / ".dvc" / "cache")
    made = Path(found["folder"]) / "calibration.safetensors"
    before = made.read_bytes()
    made.unlink()
    dvc(
        cloned,
        "pull",
        str(Path(found["dvc_lock"]).with_name("dvc.yaml").relative_to(cloned)),
    )
    assert made.read_bytes() == before


def test_a_remote_that_is_lost_is_named(cloned: Path) -> None:
    dvc(cloned, "remote", "modify", "data", "url", "s3://absent/dvc")
    with pytest.raises(
        UserError,
        match="could not be pushed to the DVC remote 'data': `elder doctor` says why",
    ):
        run(cloned, **{"calibration.seed": 8})
