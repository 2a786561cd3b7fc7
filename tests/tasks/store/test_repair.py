"""A stored model that was damaged behind the store's back: publishing it again mends it, and sends nothing else."""

import re
from pathlib import Path

import pytest

from elder.errors import UserError
from tasks.store.base import Published, Store
from tasks.store.s3 import S3Store

pytestmark = pytest.mark.usefixtures("credentials")
MEGABYTE = 1024 * 1024


def damage(store: Store, key: str) -> None:
    """Change the first byte of what is stored, and neither its size nor, on S3, its metadata."""
    data = store.read(key)
    assert data
    other = bytes([data[0] ^ 1]) + data[1:]
    if isinstance(store, S3Store):
        at = store._at(key)
        metadata = store.client.head_object(**at)["Metadata"]
        store.client.put_object(**at, Body=other, Metadata=metadata)
    else:
        (store.root / key).write_bytes(other)


@pytest.mark.parametrize(
    ("paths", "bytes_sent"),
    [
        (["config.json"], 2),
        (["model.safetensors"], 9 * MEGABYTE),
        (["sub/extra.txt", "config.json"], 7),
        (["manifest.json"], 0),
        ([], 0),
    ],
)
def test_what_is_damaged_is_sent_again_and_nothing_else(
    store, folder, paths, bytes_sent
):
    first = store.publish(folder, "tiny")
    for path in paths:
        damage(store, f"models/tiny/{first.digest}/{path}")
    assert bool(store.verify(first.url)) == bool(paths)
    assert store.publish(folder, "tiny").uploaded_bytes == bytes_sent
    assert store.verify(first.url) == []


def test_what_is_missing_is_sent_again(store, folder, tmp_path):
    published = store.publish(folder, "tiny")
    key = f"models/tiny/{published.digest}/config.json"
    if isinstance(store, S3Store):
        store.client.delete_object(**store._at(key))
    else:
        (store.root / key).unlink()
    assert store.publish(folder, "tiny").uploaded_bytes == 2
    assert store.verify(published.url) == []


def said(store: Store, published: Published, target: Path) -> str:
    with pytest.raises(UserError) as caught:
        store.fetch(published.url, target)
    return str(caught.value)


@pytest.mark.parametrize("path", ["config.json", "manifest.json"])
def test_the_sentence_names_the_command_that_mends_it(store, folder, tmp_path, path):
    published = store.publish(folder, "tiny")
    damage(store, f"models/tiny/{published.digest}/{path}")
    sentence = said(store, published, tmp_path / "copy")
    assert re.search(r"python infra/restore.py NAME --folder runs/ID/model$", sentence)


def test_an_upload_that_goes_on_trusts_the_metadata(relayed, folder, monkeypatch):
    """Before the manifest is there nothing is read back: a large upload that was cut goes on at once."""
    with monkeypatch.context() as cut:
        cut.setattr(relayed, "_write", lambda *_: None)
        relayed.publish(folder, "tiny")
    monkeypatch.setattr(relayed, "_measure", None)
    assert relayed.publish(folder, "tiny").uploaded_bytes == 0
