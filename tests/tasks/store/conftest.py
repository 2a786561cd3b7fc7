"""A store behind a relay that can fail."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tasks import retry
from tasks.store import server as server_module
from tasks.store.open import open_store
from tasks.store.s3 import S3Store
from tests.tasks.store.faulty import Faulty


@pytest.fixture
def relay(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Start a relay in front of the server; waits are short, and boto3 itself tries once."""
    monkeypatch.setenv("ELDER_PATIENCE", "5")
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(retry, "_said", {})
    monkeypatch.setattr(server_module, "ATTEMPTS", 1)
    made = Faulty(server)
    yield made
    made.close()


@pytest.fixture
def relayed(server: str, relay: Faulty, tmp_path: Path) -> S3Store:
    bucket = "r" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    opened = open_store(f"s3://{bucket}/x", relay.url, "us-east-1")
    assert isinstance(opened, S3Store)
    return opened
