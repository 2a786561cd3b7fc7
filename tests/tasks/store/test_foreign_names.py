"""Whoever may write to a store names files as he likes: none of them leads out of a folder, and all are named."""

import json
import os
import socket
from pathlib import Path

import pytest

from elder import files
from elder.errors import UserError
from tasks.store import base
from tasks.store.base import Store
from tasks.store.local import LocalStore
from tasks.store.manifest import File, digest, parse
from tasks.store.open import open_store
from tasks.store.s3 import S3Store

pytestmark = pytest.mark.usefixtures("credentials")
SMALL = {"config.json": b"{}", "sub/extra.txt": b"extra"}
CLASH = "Config.json"
ON_ANY_STORE = ["a\\b", "a\x1b[2Jb", "c:x", CLASH, "caf\u200be"]
ON_S3 = [
    "/absolute",
    "//home/x/.ssh/authorized_keys",
    "../outside",
    "sub/../../../outside",
    "a//b",
    "./here",
    "sub/",
    "",
    "config.json/below",
    "a" * 300,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for name, content in SMALL.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    store = open_store(str(tmp_path / "a store"))
    assert isinstance(store, LocalStore)
    return store


def put(store: Store, key: str, content: bytes = b"ssh-rsa") -> None:
    """Write an object as somebody would who has a key to the store and no use for this project."""
    if isinstance(store, S3Store):
        whole = f"{store.prefix}/{key}"
        store.client.put_object(Bucket=store.bucket, Key=whole, Body=content)
    else:
        assert isinstance(store, LocalStore)
        (store.root / key).write_bytes(content)


def everything(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*")}


def names(store: Store) -> list[str]:
    return ON_ANY_STORE + (ON_S3 if isinstance(store, S3Store) else [])


def test_what_breaks_the_rule_is_named_and_never_written(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    published = store.publish(folder, "tiny")
    prefix = f"models/tiny/{published.digest}"
    for name in names(store):
        put(store, f"{prefix}/{name}")
    place = tmp_path / "place" / "of the audit"
    place.mkdir(parents=True)
    lying = store.as_it_lies(published.url, place)
    expected = set(names(store)) - {CLASH} | {"config.json"}  # the later of the two
    assert set(lying.astray) == expected
    copied = everything(place)
    assert copied == {"sub", "sub/extra.txt", "manifest.json", CLASH}
    assert everything(tmp_path / "place") - {"of the audit"} == {
        f"of the audit/{name}" for name in copied
    }
    assert not Path("/absolute").exists()
    # config.json clashes, and the other one is not in the manifest
    assert len(store.verify(published.url)) == len(names(store)) + 1


def test_an_absolute_name_is_not_written(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    """The very attack: all that follows ``DIGEST/`` is an absolute path, which joined to a folder is itself."""
    if isinstance(store, LocalStore):
        pytest.skip("no file of a disk has such a name")
    published = store.publish(folder, "tiny")
    victim = tmp_path / "home" / "authorized_keys"
    victim.parent.mkdir()
    put(store, f"models/tiny/{published.digest}/{victim}")
    lying = store.as_it_lies(published.url, tmp_path / "place")
    assert not victim.exists()
    assert lying.astray == {str(victim): "leads outside"}
    assert store.verify(published.url) == [f"'{victim}' leads outside"]


@pytest.mark.parametrize(
    "name", [*ON_ANY_STORE[:3], *ON_S3, "manifest.json", "Manifest.json"]
)
def test_a_manifest_with_such_a_name_is_refused(name: str) -> None:
    told = {
        name: File(sha256="0" * 64, bytes=0),
        "config.json": File(sha256="0" * 64, bytes=0),
    }
    content = {
        "digest": digest(told),
        "files": {path: file.model_dump() for path, file in told.items()},
    }
    with pytest.raises(UserError, match="manifest.json names .*do not use this model"):
        parse(json.dumps(content).encode(), "store/x")


def test_a_folder_with_such_a_name_is_not_published(store: Store, folder: Path) -> None:
    for name in ON_ANY_STORE:
        (folder / name).write_bytes(b"")
        with pytest.raises(UserError, match="a stored model has none such"):
            store.publish(folder, "tiny")
        (folder / name).unlink()
    assert store.paths("") == set()


def test_links_in_a_local_store_are_found_and_not_followed(
    local: LocalStore, folder: Path, tmp_path: Path
) -> None:
    published = local.publish(folder, "tiny")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "extra.txt").write_bytes(b"extra")  # the same bytes, elsewhere
    place = Path(published.url)
    (place / "sub" / "extra.txt").unlink()
    (place / "sub").rmdir()
    (place / "sub").symlink_to(secret)
    (place / "linked.txt").symlink_to(secret / "extra.txt")
    (place / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "target").mkdir()
    lying = local.as_it_lies(published.url, tmp_path / "target")
    assert lying.astray == dict.fromkeys(
        ("sub", "linked.txt", "nowhere"), "is a symbolic link"
    )
    assert everything(lying.folder) == {"config.json", "manifest.json"}
    said = " ".join(local.verify(published.url)[:3])
    assert all(f"'{name}' is a symbolic link" in said for name in lying.astray)
    with pytest.raises(UserError, match="models/tiny/.*/sub is a symbolic link"):
        local.fetch(published.url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_link_on_the_way_to_a_model_is_found_and_not_followed(
    local: LocalStore, folder: Path, tmp_path: Path, depth: int
) -> None:
    """Of ``models``, of ``models/NAME``, of the model's own folder."""
    published = local.publish(folder, "tiny")
    key = "/".join(f"models/tiny/{published.digest}".split("/")[:depth])
    (local.root / key).rename(tmp_path / "moved")
    (local.root / key).symlink_to(tmp_path / "moved")
    lying = local.as_it_lies(published.url, tmp_path / "target")
    assert lying.astray == {key: "is a symbolic link"}
    assert not lying.folder.exists()
    before = everything(tmp_path / "moved")
    for call in (
        lambda: local.fetch(published.url, tmp_path / "copy"),
        lambda: local.publish(folder, "tiny"),
        lambda: local.verify(published.url),
        lambda: local.create(f"models/tiny/{published.digest}/x", b""),
    ):
        with pytest.raises(UserError, match=f"{key} is a symbolic link"):
            call()
    assert everything(tmp_path / "moved") == before


@pytest.mark.parametrize("name", ["history", ".incoming"])
def test_nothing_is_written_through_a_link(
    local: LocalStore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "outside").mkdir()
    local.root.mkdir()
    (local.root / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=f"{name} is a symbolic link"):
        local.create("history/tiny/000001.json", b"{}")
    assert everything(tmp_path / "outside") == set()


def test_special_files_are_named_and_never_opened(
    local: LocalStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a pipe would wait for somebody to write into it."""
    published = local.publish(folder, "tiny")
    place = Path(published.url)
    (place / "config.json").unlink()
    os.mkfifo(place / "config.json")
    monkeypatch.chdir(place)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as there:
        there.bind("socket")
    lying = local.as_it_lies(published.url, tmp_path / "target")
    assert lying.astray == dict.fromkeys(
        ("config.json", "socket"), "is no regular file"
    )
    assert len(local.verify(published.url)) == 2
    with pytest.raises(UserError, match="config.json is no regular file"):
        local.fetch(published.url, tmp_path / "copy")


def test_a_folder_with_links_or_special_files_is_not_published(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"secret")
    for make in (
        lambda path: path.symlink_to(tmp_path / "file"),
        lambda path: path.symlink_to(folder / "config.json"),
        lambda path: path.symlink_to(folder / "sub"),
        os.mkfifo,
    ):
        make(folder / "odd")
        with pytest.raises(
            UserError, match="'odd' is (a symbolic link|no regular file); a stored"
        ):
            store.publish(folder, "tiny")
        (folder / "odd").unlink()
    assert store.paths("") == set()


def test_hard_links_are_files(store: Store, folder: Path, tmp_path: Path) -> None:
    (folder / "again.json").hardlink_to(folder / "config.json")
    published = store.publish(folder, "tiny")
    assert set(published.files) == {*SMALL, "again.json"}
    assert store.verify(published.url) == []


def test_a_snapshot_of_the_hubs_cache_is_published_as_files(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models--owner--tiny"
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    for number, name in enumerate(SMALL):
        (repository / "blobs" / str(number)).write_bytes(SMALL[name])
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(repository / "blobs" / str(number))
    published = store.publish(snapshot, "tiny")
    assert published.digest == store.publish(folder, "tiny").digest
    assert store.listing(f"models/tiny/{published.digest}").odd == {}
    (snapshot / "elsewhere").symlink_to(folder / "config.json")
    with pytest.raises(UserError, match="'elsewhere' is a symbolic link"):
        store.publish(snapshot, "tiny")


def test_what_should_be_small_is_not_read_at_any_size(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = store.publish(folder, "tiny")
    key = f"models/tiny/{published.digest}/manifest.json"
    monkeypatch.setattr(files, "LARGEST_JSON", 100)
    put(store, key, b" " * 101)
    for call in (
        store.manifest,
        store.verify,
        lambda url: store.fetch(url, tmp_path / "copy"),
    ):
        with pytest.raises(
            UserError, match="manifest.json has more than the 100 bytes allowed"
        ):
            call(published.url)
    put(store, key, b" " * 100)
    assert store.read(key) == b" " * 100


def test_an_object_of_another_size_is_not_brought(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = store.publish(folder, "tiny")
    put(store, f"models/tiny/{published.digest}/config.json", b"x" * 1000)
    monkeypatch.setattr(store, "_receive", None)
    with pytest.raises(
        UserError, match="config.json has 1000 bytes, the manifest says 2"
    ):
        store.fetch(published.url, tmp_path / "copy")


def test_absurd_numbers_are_refused_before_anything_is_copied(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = store.publish(folder, "tiny")
    put(
        store, f"models/tiny/{published.digest}/c:x"
    )  # else a local store copies nothing
    monkeypatch.setattr(store, "_receive", None)
    with monkeypatch.context() as patched:
        patched.setattr(base, "MOST_FILES", 3)
        with pytest.raises(
            UserError, match="holds 4 files, and no model has more than 3"
        ):
            store.as_it_lies(published.url, tmp_path / "place")
    monkeypatch.setattr(
        base.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 7})
    )
    with pytest.raises(UserError, match="bytes, and there is room for 7 in"):
        store.as_it_lies(published.url, tmp_path / "place")
    assert not (tmp_path / "place").exists()


def test_no_key_leads_out_of_a_local_store(local: LocalStore) -> None:
    for key in ("../x", "/etc/passwd", "a\0b", "a//b"):
        with pytest.raises(UserError, match="cannot lie there"):
            local.read(key)
