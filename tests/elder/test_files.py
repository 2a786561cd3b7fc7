"""Files and folders: whole or not at all, on the disk before they count, and JSON that cannot do harm."""

import errno
import json
import math
import os
import threading
from pathlib import Path

import pytest

from elder import files
from elder.errors import UserError
from elder.files import (
    copy_whole,
    file_digest,
    read_json,
    whole_file,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return what is synced and renamed, by name, in order."""
    seen: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    real_open, real_sync = os.open, os.fsync
    replace, rename = Path.replace, Path.rename

    def opened(path: str | Path, *rest: int) -> int:
        handle = real_open(path, *rest)
        names[handle] = Path(path).name
        return handle

    def synced(handle: int) -> None:
        seen.append(("sync", names[handle]))
        real_sync(handle)

    def moved(move: object, source: Path, target: Path) -> None:
        seen.append(("rename", target.name))
        move(source, target)  # type: ignore[operator]

    monkeypatch.setattr(files.os, "open", opened)
    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(
        Path, "replace", lambda self, target: moved(replace, self, target)
    )
    monkeypatch.setattr(
        Path, "rename", lambda self, target: moved(rename, self, target)
    )
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_it_counts(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    with whole_file(tmp_path / "a.bin") as new:
        new.write_bytes(b"1")
    assert steps == [
        ("sync", ".a.bin.new"),
        ("rename", "a.bin"),
        ("sync", tmp_path.name),
    ]


def test_every_way_of_writing_syncs(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    write_bytes(tmp_path / "a", b"1")
    write_text(tmp_path / "b", "ä")
    write_json(tmp_path / "c", [1])
    copy_whole(tmp_path / "a", tmp_path / "d")
    assert [name for step, name in steps if step == "rename"] == ["a", "b", "c", "d"]
    assert len(steps) == 4 * 3
    assert (tmp_path / "b").read_bytes() == "ä".encode()
    assert (tmp_path / "c").read_text() == "[\n 1\n]\n"
    assert (tmp_path / "d").read_bytes() == b"1"


def test_a_folder_and_all_in_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    with whole_folder(tmp_path / "model") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "weights").write_bytes(b"1")
        (partial / "config").write_bytes(b"2")
    place = steps.index(("rename", "model"))
    assert sorted(steps[:place]) == [
        ("sync", ".model.partial"),
        ("sync", "config"),
        ("sync", "inner"),
        ("sync", "weights"),
    ]
    assert steps[place + 1 :] == [("sync", tmp_path.name)]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(ZeroDivisionError), whole_file(path) as new:
        new.write_text(f"half {1 / 0}")
    with pytest.raises(TypeError):
        write_json(path, object())
    assert read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_a_killed_attempt_left_is_replaced_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "remove"
    folder.mkdir()
    (folder / "old.safetensors").write_bytes(b"of the killed attempt")
    with (
        pytest.raises(UserError, match="cannot be written: Directory not empty"),
        whole_folder(folder) as partial,
    ):
        (partial / "new").touch()
    with whole_folder(folder, replace=True) as partial:
        (partial / "new.safetensors").write_bytes(b"whole")
    assert [path.name for path in folder.iterdir()] == ["new.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["remove"]


def test_a_full_disk_leaves_no_folder_and_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with (
        pytest.raises(
            UserError, match="cannot be written: No space left on device; free some"
        ),
        whole_folder(tmp_path / "model") as partial,
    ):
        (partial / "weights").write_bytes(b"1")
    assert list(tmp_path.iterdir()) == []


def test_many_may_write_one_file_at_once(tmp_path: Path) -> None:
    path, large = tmp_path / "a.json", list(range(20_000))
    writers = [
        threading.Thread(target=write_json, args=(path, large)) for _ in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert read_json(path) == large
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_are_not_finite_are_refused_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.json"
    value = {"curve": [{"loss": 1.5}, {"loss": math.inf}], "other": math.nan}
    with pytest.raises(
        UserError, match=r"a\.json' .* curve\.1\.loss is not a finite number"
    ):
        write_json(path, value, finite=True)
    assert not path.exists()
    write_json(path, value)
    again = read_json(path)
    assert again["curve"][1]["loss"] == math.inf
    assert math.isnan(again["other"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is not valid JSON: Expecting value"),
        (b"\xff{}", "is not valid JSON: 'utf-8' codec can't decode"),
        (b"1" * 5000, "is not valid JSON: Exceeds the limit"),
        (b"[" * 101 + b"]" * 101, "is nested deeper than the 100 levels allowed"),
        (b"[" * 200_000, "is nested deeper than the 100 levels allowed"),
        (b'{"a":' * 200_000, "is nested deeper than the 100 levels allowed"),
    ],
)
def test_json_that_cannot_be_used(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json' {sentence}"):
        read_json(path)
    with pytest.raises(UserError, match=f"^the marker {sentence}"):
        read_json(path, "the marker")


def test_json_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    path = tmp_path / "a.json"
    path.write_text(json.dumps("12345678"))
    assert read_json(path) == "12345678"
    path.write_text(json.dumps("123456789"))
    with pytest.raises(UserError, match="has more than the 10 bytes allowed"):
        read_json(path)


def test_json_of_a_hundred_levels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[" * 100 + b"]" * 100)
    assert read_json(path)


def test_a_digest_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert (
        file_digest(path)
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
