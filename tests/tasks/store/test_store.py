"""The store of bytes, on a local folder and on a real S3-compatible HTTP server: what is stored is what comes back."""

import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from elder.errors import UserError
from tasks.store import s3
from tasks.store.base import Store
from tasks.store.manifest import File, digest, parse
from tasks.store.open import open_model, open_store

# of model.safetensors: above the 8 MB from which boto3 sends parts
BIG = 9 * 1024 * 1024
pytestmark = pytest.mark.usefixtures("credentials")


def _overwrite(store: Store, key: str, data: bytes) -> None:
    """Change stored bytes behind the store's back; on S3 the metadata keep the old sha256."""
    if isinstance(store, s3.S3Store):
        at = store._at(key)
        metadata = store.client.head_object(**at)["Metadata"]
        store.client.put_object(**at, Body=data, Metadata=metadata)
    else:
        (store.root / key).write_bytes(data)


def _delete(store: Store, key: str) -> None:
    if isinstance(store, s3.S3Store):
        store.client.delete_object(**store._at(key))
    else:
        (store.root / key).unlink()


def test_digest_by_hand():
    files = {"b": File(sha256="1" * 64, bytes=2), "a": File(sha256="0" * 64, bytes=1)}
    lines = f'[["a","{"0" * 64}",1],["b","{"1" * 64}",2]]'
    assert digest(files) == hashlib.sha256(lines.encode()).hexdigest()


def test_round_trip_and_layout(store, folder, tmp_path):
    published = store.publish(folder, "tiny")
    assert published.url == f"{store.url}/models/tiny/{published.digest}"
    assert published.uploaded_bytes == 2 + BIG + 5
    assert published.files["config.json"].sha256 == hashlib.sha256(b"{}").hexdigest()
    manifest = json.loads(store.read(f"models/tiny/{published.digest}/manifest.json"))
    assert set(manifest["files"]) == {
        "config.json",
        "model.safetensors",
        "sub/extra.txt",
    }
    copy = store.fetch(published.url, tmp_path / "made" / "copy")
    assert {
        p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()
    } == set(manifest["files"])
    assert (copy / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    assert [p.name for p in copy.parent.iterdir()] == ["copy"]
    assert store.verify(published.url) == []


def test_publish_twice_moves_nothing(store, folder, monkeypatch):
    first = store.publish(folder, "tiny")
    monkeypatch.setattr(store, "_send", None)
    monkeypatch.setattr(store, "_write", None)
    second = store.publish(folder, "tiny")
    assert second.uploaded_bytes == 0
    assert (second.url, second.digest, second.files) == (
        first.url,
        first.digest,
        first.files,
    )


def test_interrupted_publish_is_invisible_and_resumes(
    store, folder, tmp_path, monkeypatch
):
    send, sent = store._send, []

    def failing(source, key, file):
        if sent:
            raise KeyboardInterrupt
        sent.append(source.name)
        return send(source, key, file)

    monkeypatch.setattr(store, "_send", failing)
    with pytest.raises(KeyboardInterrupt):
        store.publish(folder, "tiny")
    url = f"{store.url}/models/tiny/{digest({p: _file(folder / p) for p in _names(folder)})}"
    with pytest.raises(UserError, match="has no manifest.json"):
        store.fetch(url, tmp_path / "copy")
    assert store.verify(url) == ["manifest.json is missing"]
    assert not (tmp_path / "copy").exists()

    monkeypatch.setattr(
        store,
        "_send",
        lambda source, key, file: sent.append(source.name) or send(source, key, file),
    )
    published = store.publish(folder, "tiny")
    assert published.url == url
    assert sent == ["config.json", "model.safetensors", "extra.txt"]
    assert published.uploaded_bytes == BIG + 5
    assert store.verify(url) == []


def _names(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def _file(path: Path) -> File:
    return File(
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size
    )


def test_failure_while_a_file_is_written_leaves_nothing_of_it(
    folder, tmp_path, monkeypatch
):
    store = open_store(str(tmp_path / "store"))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        store.publish(folder, "tiny")
    assert [p for p in store.root.rglob("*") if p.is_file()] == []


def test_flipped_byte_is_found(store, folder, tmp_path):
    published = store.publish(folder, "tiny")
    key = f"models/tiny/{published.digest}"
    _overwrite(store, f"{key}/config.json", b"{]")
    faults = store.verify(published.url)
    assert len(faults) == 1
    assert "config.json has sha256" in faults[0]
    with pytest.raises(UserError, match="damaged.*config.json has sha256"):
        store.fetch(published.url, tmp_path / "copy")
    assert sorted(p.name for p in tmp_path.iterdir() if "copy" in p.name) == []


def test_other_bytes_of_the_same_size_are_sent_again(store, folder, tmp_path):
    published = store.publish(folder, "tiny")
    (tmp_path / "other").write_bytes(b"[]")
    store._send(
        tmp_path / "other",
        f"models/tiny/{published.digest}/config.json",
        _file(tmp_path / "other"),
    )
    assert store.publish(folder, "tiny").uploaded_bytes == 2
    assert store.verify(published.url) == []


def test_missing_short_and_added_files_are_found(store, folder, tmp_path):
    published = store.publish(folder, "tiny")
    key = f"models/tiny/{published.digest}"
    _delete(store, f"{key}/sub/extra.txt")
    _overwrite(store, f"{key}/config.json", b"{")
    (folder / "code.py").write_text("x")
    store._send(folder / "code.py", f"{key}/code.py", _file(folder / "code.py"))
    assert store.verify(published.url) == [
        "code.py is not in the manifest",
        "config.json has 1 bytes, the manifest says 2",
        "sub/extra.txt is missing",
    ]
    _overwrite(store, f"{key}/config.json", b"{}")
    with pytest.raises(UserError, match="missing|No such file"):
        store.fetch(published.url, tmp_path / "copy")


def test_changed_manifest_is_refused(store, folder, tmp_path):
    published = store.publish(folder, "tiny")
    key = f"models/tiny/{published.digest}/manifest.json"
    for path in ("../outside", "/etc/passwd", "other.json"):
        files = {path: File(sha256="0" * 64, bytes=0)}
        content = {
            "digest": digest(files),
            "files": {path: {"sha256": "0" * 64, "bytes": 0}},
        }
        _overwrite(store, key, json.dumps(content).encode())
        with pytest.raises(UserError, match="leads outside|does not match its digest"):
            store.fetch(published.url, tmp_path / "copy")
        assert len(store.verify(published.url)) == 1
    _overwrite(store, key, b'{"files": []}')
    with pytest.raises(UserError, match="not readable"):
        store.fetch(published.url, tmp_path / "copy")


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        b'{"digest": "d", "files": ' + DEEP + b"}",
        b'{"digest": "d", "files": {"a": {"sha256": "%s", "bytes": %s}}}'
        % (b"0" * 64, b"9" * 5000),
        b'{"digest": 1, "files": {}}',
        b'{"digest": "d", "files": [1]}',
        b'{"digest": "d", "files": {"a": null}}',
        b"\xff",
    ],
    ids=["deep", "deep inside", "huge integer", "number", "list", "null", "no text"],
)
def test_a_manifest_of_any_content_is_refused_in_a_sentence(content: bytes) -> None:
    with pytest.raises(
        UserError, match="store/x: manifest.json is not readable; publish"
    ):
        parse(content, "store/x")


def test_manifest_must_match_its_own_digest():
    files = {"a": {"sha256": "0" * 64, "bytes": 0}}
    with pytest.raises(UserError, match="does not match its digest"):
        parse(
            json.dumps({"digest": "1" * 64, "files": files}).encode(),
            "s3://bucket/model",
        )


def test_fetch_repeats_but_never_overwrites(store, folder, tmp_path):
    published = store.publish(folder, "tiny")
    copy = store.fetch(published.url, tmp_path / "copy")
    assert store.fetch(f"models/tiny/{published.digest}", copy) == copy
    (copy / "config.json").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        store.fetch(published.url, copy)
    assert (copy / "config.json").read_text() == "mine"


def test_create_never_replaces(store):
    assert store.read("history/tiny/000001.json") is None
    assert store.create("history/tiny/000001.json", b"first")
    assert not store.create("history/tiny/000001.json", b"second")
    assert store.read("history/tiny/000001.json") == b"first"
    assert store.paths("history") == {"tiny/000001.json"}


def test_create_by_several_at_once_has_one_winner(store):
    texts = [f"from thread {number}".encode() for number in range(6)]
    with ThreadPoolExecutor(len(texts)) as pool:
        won = list(pool.map(lambda text: store.create("log/1", text), texts))
    assert won.count(True) == 1
    assert store.read("log/1") == texts[won.index(True)]


def test_create_trusts_what_is_there_more_than_the_answer(server, monkeypatch):
    from botocore.exceptions import ClientError

    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    client.create_bucket(Bucket="creates")
    store = open_store("s3://creates", server, "us-east-1")
    # a server that looks first and writes afterwards: another writer's bytes replace ours in the meantime
    with monkeypatch.context() as patched:
        patched.setattr(
            s3.time,
            "sleep",
            lambda _: client.put_object(Bucket="creates", Key="log/1", Body=b"theirs"),
        )
        assert not store.create("log/1", b"ours")
    # an answer that got lost: the second try is told that something is there
    call = store.client._make_api_call

    def lost(operation, *args, **kwargs):
        found = call(operation, *args, **kwargs)
        if operation == "PutObject":
            raise ClientError({"Error": {"Code": "PreconditionFailed"}}, operation)
        return found

    monkeypatch.setattr(store.client, "_make_api_call", lost)
    assert store.create("log/2", b"ours")


def test_open_model_finds_the_store(store, folder, tmp_path):
    published = store.publish(folder, "tiny")
    found, prefix = open_model(
        published.url, getattr(store, "endpoint", None), "us-east-1"
    )
    assert (found.url, prefix) == (store.url, f"models/tiny/{published.digest}")
    assert found.fetch(prefix, tmp_path / "copy").is_dir()


def test_target_inside_the_local_store_is_refused(folder, tmp_path):
    store = open_store(str(tmp_path / "store"))
    published = store.publish(folder, "tiny")
    with pytest.raises(UserError, match="inside the store"):
        store.fetch(published.url, tmp_path / "store" / "models" / "copy")


def test_s3_puts_the_manifest_last_and_large_files_in_parts(server, folder):
    boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(
        Bucket="orders"
    )
    store, calls = open_store("s3://orders", server, "us-east-1"), []
    store.client.meta.events.register(
        "before-sign.s3",
        lambda request, operation_name, **_: calls.append(
            (operation_name, request.url.split("?")[0])
        ),
    )
    published = store.publish(folder, "tiny")
    writes = [
        (name, url.rpartition(published.digest)[2])
        for name, url in calls
        if not name.startswith(("Head", "Get"))
    ]
    assert writes[-1] == ("PutObject", "/manifest.json")
    assert [url for _, url in writes].count("/manifest.json") == 1
    assert ("CompleteMultipartUpload", "/model.safetensors") in writes
    # 9 MB in parts of 8 MB are two parts
    assert writes.count(("UploadPart", "/model.safetensors")) == 2
