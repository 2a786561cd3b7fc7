"""A store on a local folder and on a real S3-compatible HTTP server, and a folder to store."""

import hashlib
import os
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tasks.store.base import Store
from tasks.store.open import open_store

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="session")
def server():
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def credentials(request, monkeypatch):
    """Set credentials and nothing else of AWS; the secret is the module's SECRET, if it looks for that."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv(
        "AWS_SECRET_ACCESS_KEY", getattr(request.module, "SECRET", "secret")
    )
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path, credentials) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "a store"))
    endpoint = request.getfixturevalue("server")
    bucket = "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(
        Bucket=bucket
    )
    return open_store(f"s3://{bucket}/some/prefix", endpoint, "us-east-1")


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(b"ab" * (9 * MEGABYTE // 2))
    (folder / "sub" / "extra.txt").write_bytes(b"extra")
    return folder
