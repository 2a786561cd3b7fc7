"""Large files on S3 over HTTP: sent in parts, resumed after the connection is cut, never seen half."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from elder.errors import UserError
from tasks.errors import Unreachable
from tasks.store import parts, s3
from tasks.store import server as server_module
from tasks.store.manifest import fingerprint
from tasks.store.open import open_store
from tests.tasks.store.refusing import refuse

SIZE = 5 * 1024 * 1024  # the least that S3 allows for a part
pytestmark = pytest.mark.usefixtures("credentials")


class Wire:
    """A TCP relay to a server that goes dead, for good, after some bytes were sent through it."""

    def __init__(self, host: str, port: int, budget: int) -> None:
        self.target, self.budget = (host, port), budget
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if self.budget <= 0:
                near.close()
                continue
            far = socket.create_connection(self.target)
            self.open += [near, far]
            threading.Thread(
                target=self._relay, args=(near, far, True), daemon=True
            ).start()
            threading.Thread(
                target=self._relay, args=(far, near, False), daemon=True
            ).start()

    def _relay(
        self, source: socket.socket, target: socket.socket, counted: bool
    ) -> None:
        try:
            while data := source.recv(1 << 16):
                if counted:
                    self.budget -= len(data)
                    if self.budget <= 0:
                        return self.cut()
                target.sendall(data)
        except OSError:
            return
        target.close()

    def cut(self) -> None:
        for end in self.open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@pytest.fixture
def wire(server: str) -> Iterator[Any]:
    made: list[Wire] = []
    host, port = server.removeprefix("http://").split(":")

    def make(budget: int) -> Wire:
        made.append(Wire(host, int(port), budget))
        return made[-1]

    yield make
    for one in made:
        one.listener.close()
        one.cut()


@pytest.fixture
def bucket(
    server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Return boto3's client and a bucket; files are sent in parts of 5 MiB, one after the other."""
    monkeypatch.setattr(parts, "PART", SIZE)
    monkeypatch.setattr(s3, "PART", SIZE)
    monkeypatch.setattr(parts, "THREADS", 1)
    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    name = "parts-" + request.node.name.replace("_", "-")[:50].rstrip("-")
    client.create_bucket(Bucket=name)
    return client, name


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make a model of four parts, the last one short, and a small file before and after it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(3 * SIZE + 7))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def unfinished(client: Any, bucket: str) -> list[dict[str, Any]]:
    return client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])


def test_a_cut_upload_goes_on_with_the_parts_that_arrived(
    server, bucket, wire, model, tmp_path, monkeypatch
):
    client, name = bucket
    monkeypatch.setattr(server_module, "ATTEMPTS", 1)
    # dies in the third part
    with pytest.raises(Unreachable, match="cannot be reached"):
        open_store(
            f"s3://{name}/x", wire(2 * SIZE + SIZE // 2).url, "us-east-1"
        ).publish(model, "big")

    store = open_store(f"s3://{name}/x", server, "us-east-1")
    (upload,) = unfinished(client, name)
    there = client.list_parts(
        Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"]
    )["Parts"]
    assert [part["PartNumber"] for part in there] == [1, 2]
    url = upload["Key"].removeprefix("x/").removesuffix("/model.safetensors")
    assert store.paths(url) == {"config.json"}  # nobody sees any of the large file
    with pytest.raises(UserError, match="has no manifest.json"):
        store.fetch(url, tmp_path / "copy")

    published = store.publish(model, "big")
    assert published.uploaded_bytes == SIZE + 7 + 2  # parts 3 and 4, and tokenizer.json
    assert unfinished(client, name) == []
    assert store.verify(published.url) == []
    copy = store.fetch(published.url, tmp_path / "copy")
    assert (copy / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    assert store.publish(model, "big").uploaded_bytes == 0


def test_parts_of_other_bytes_are_sent_again(server, bucket, model):
    client, name = bucket
    store, source = (
        open_store(f"s3://{name}", server, "us-east-1"),
        model / "model.safetensors",
    )
    at = {"Bucket": name, "Key": "models/big/file"}
    upload = client.create_multipart_upload(**at)["UploadId"]
    first = source.read_bytes()[:SIZE]
    client.upload_part(**at, UploadId=upload, PartNumber=1, Body=b"#" + first[1:])
    client.upload_part(
        **at, UploadId=upload, PartNumber=2, Body=source.read_bytes()[SIZE : 2 * SIZE]
    )
    # all but part 2
    assert store._send(source, "models/big/file", fingerprint(source)) == 2 * SIZE + 7
    assert client.get_object(**at)["Body"].read() == source.read_bytes()


def test_a_file_that_changes_on_the_way_is_not_stored(server, bucket, model):
    client, name = bucket
    store, source = (
        open_store(f"s3://{name}", server, "us-east-1"),
        model / "model.safetensors",
    )
    before = fingerprint(source)
    source.write_bytes(b"#" + source.read_bytes()[1:])
    with pytest.raises(UserError, match="changed while it was being stored"):
        store._send(source, "models/big/file", before)
    assert store.paths("") == set()
    assert unfinished(client, name) == []


def test_an_upload_that_somebody_else_completed_is_no_failure(
    server, bucket, model, monkeypatch
):
    monkeypatch.setattr(server_module, "ATTEMPTS", 1)
    _, name = bucket
    store, source = (
        open_store(f"s3://{name}", server, "us-east-1"),
        model / "model.safetensors",
    )
    file, send = fingerprint(source), parts._send_part

    def overtaken(sender, here, number, data, md5):
        if number == 2:
            monkeypatch.setattr(parts, "_send_part", send)
            other = open_store(f"s3://{name}", server, "us-east-1")
            # it goes on from part 1
            assert other._send(source, "models/big/file", file) == 2 * SIZE + 7
        return send(sender, here, number, data, md5)

    monkeypatch.setattr(parts, "_send_part", overtaken)
    assert store._send(source, "models/big/file", file) == 0
    assert store._measure("models/big/file") == file


def test_who_may_not_list_uploads_begins_anew(server, bucket, model, monkeypatch):
    client, name = bucket
    store, source = (
        open_store(f"s3://{name}", server, "us-east-1"),
        model / "model.safetensors",
    )
    client.create_multipart_upload(Bucket=name, Key="models/big/file")
    refuse(monkeypatch, store, "AccessDenied", {"ListMultipartUploads"})
    assert store._send(source, "models/big/file", fingerprint(source)) == 3 * SIZE + 7
    assert store._measure("models/big/file") == fingerprint(source)


def test_no_file_needs_more_parts_than_s3_allows():
    # 100 GB: 10,000 parts of 10,000,000 bytes, more than the usual 8 MiB
    assert parts.part_size(100_000_000_000) == 10_000_000
    assert parts.part_size(100_000_000_001) == 10_000_001
    assert parts.part_size(3) == 8 * 1024 * 1024
