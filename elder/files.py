"""Files and folders that appear whole or not at all, are on the disk before they count, and the digests of files.

Whatever is written here is written beside its place first, then synced, then renamed, and then the folder is synced:
after a power cut a name stands for all of its content, or is not there.
"""

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from elder.errors import UserError

LARGEST_JSON = (
    64 << 20
)  # bytes: a record of a long run takes a few MB; read, it takes twenty times as much
POINTER = b"version https://git-lfs.github.com/spec/"
DEEPEST_JSON = 100  # levels: ours take ten


class Readable(Protocol):
    """What bytes are read from: a file, or the body of an answer."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes."""


def check_output(folder: Path) -> None:
    """Refuse an output folder that holds something, or that cannot be made.

    Raises:
        UserError: before any work is done.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"the output folder {str(folder)!r} already holds something; name a new or an empty one"
        )
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(
            f"the output folder {str(folder)!r} cannot be made: {str(parent)!r} is no folder that can be written to"
        )


@contextmanager
def whole_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` to fill; it takes that name at the end, and vanishes on any failure.

    Args:
        folder: absent or empty.
        replace: take the place of a folder that holds something, too: of one that a killed attempt left without the
            marker that would make it count.

    Raises:
        UserError: if the disk is full or the folder cannot be written.
    """
    temporary = folder.absolute().with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        sync_tree(temporary)
        if folder.exists():
            if replace:
                shutil.rmtree(folder)
            else:
                folder.rmdir()
        temporary.rename(folder)
        sync(folder.absolute().parent)
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} cannot be written: {error.strerror or error}; free some space or name another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; it takes that name at the end, and is removed on any failure.

    Args:
        path: the file to be; one that is there is replaced, and its folder is made if it is absent.
        shared: several processes or threads may write it at once, each to a path of its own. Without it, what a killed
            attempt left is written over by the next, which counts for large files.
    """
    own = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    new = path.with_name(f".{path.name}{own}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield new
        sync(new)
        new.replace(path)
        sync(path.absolute().parent)
    finally:
        new.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; several processes may write it at once."""
    with whole_file(path, shared=True) as new:
        new.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text whole or not at all; several processes may write it at once."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, finite: bool = False) -> None:
    """Write JSON whole or not at all; several processes may write it at once.

    Args:
        path: the file to be.
        value: of plain types.
        finite: refuse numbers that are none, or infinite, for which JSON has no word. Without it they are written as
            Python reads them back, ``NaN`` and ``Infinity``: a run that went wrong must be recorded, too.

    Raises:
        UserError: with ``finite``, naming the first number that is not.
    """
    if finite and (place := _not_finite(value)):
        raise UserError(
            f"{str(path)!r} cannot be written: {place} is not a finite number"
        )
    write_text(path, json.dumps(value, indent=1) + "\n")


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file whole or not at all; several processes may make the same copy at once."""
    with whole_file(target, shared=True) as new:
        shutil.copyfile(source, new)


def refuse_pointer(path: Path) -> None:
    """Refuse what Git LFS leaves in a clone in place of a large file.

    Raises:
        UserError: saying how to get the file.
    """
    with path.open("rb") as handle:
        if handle.read(len(POINTER)) == POINTER:
            raise UserError(
                f"{str(path)!r} is Git LFS's pointer to the file, not the file itself; fetch it with: git lfs pull"
            )


def read_json(path: Path, what: str = "") -> Any:
    """Return the content of a JSON file.

    Args:
        path: of the file.
        what: how a sentence that refuses it calls the file; by default its path.

    Raises:
        UserError: if it cannot be read, or is too large, too deeply nested or not JSON.
    """
    what = what or repr(str(path))
    try:
        with path.open("rb") as handle:
            data = read_small(handle, what)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror or error}") from None
    return parse_json(data, what)


def in_hub_blobs(folder: Path, path: Path) -> bool:
    """Say whether a path in a snapshot of the Hub's cache leads to a blob of the same repository.

    Args:
        folder: ``.../models--gpt2/snapshots/REVISION``, or any other, which has no blobs.
        path: in it; such a cache keeps files in ``.../models--gpt2/blobs``, and links to them.
    """
    snapshots, target = folder.resolve().parent, path.resolve()
    blobs = snapshots.parent / "blobs"
    return snapshots.name == "snapshots" and target.parent == blobs and target.is_file()


def is_hub_blob(path: Path) -> bool:
    """Say whether a path leads to a blob of the Hub's cache, as in a folder that huggingface_hub downloaded into."""
    target = path.resolve()
    owner = target.parent.parent.name
    return (
        target.parent.name == "blobs"
        and owner.startswith("models--")
        and target.is_file()
    )


def read_small(handle: Readable, what: str) -> bytes:
    """Return all bytes of a file that must fit into memory, such as a record, and read no more than those.

    Raises:
        UserError: if it is larger.
    """
    data = handle.read(LARGEST_JSON + 1)
    refuse_large(len(data), what)
    return data


def refuse_large(size: int, what: str) -> None:
    """Refuse so many bytes of a file that must fit into memory, such as a record.

    Raises:
        UserError: if they are too many.
    """
    if size > LARGEST_JSON:
        raise UserError(f"{what} has more than the {LARGEST_JSON} bytes allowed")


def parse_json(data: bytes | str, what: str) -> Any:
    """Return the value of a JSON text that may come from anywhere.

    Args:
        data: the text, UTF-8.
        what: how a sentence that refuses it calls it.

    Raises:
        UserError: if it is too deeply nested or not JSON.
    """
    try:
        value = json.loads(data)
    except ValueError as error:  # integers of thousands of digits and wrong UTF-8, too
        raise UserError(f"{what} is not valid JSON: {error}") from None
    except RecursionError:
        raise _too_deep(what) from None
    if _depth(value) > DEEPEST_JSON:
        raise _too_deep(what)
    return value


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _too_deep(what: str) -> UserError:
    return UserError(f"{what} is nested deeper than the {DEEPEST_JSON} levels allowed")


def _members(value: Any) -> dict[Any, Any]:
    """Return what a list or an object holds, by index or key."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    return {}


def _depth(value: Any) -> int:
    """Return how many lists and objects are nested in one another."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        depth += 1
        level = [inner for outer in level for inner in _members(outer).values()]
    return depth


def _not_finite(value: Any, place: str = "it") -> str:
    """Return where the first number stands that is not finite; empty if there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return place
    for key, inner in _members(value).items():
        if first := _not_finite(inner, f"{place}.{key}".removeprefix("it.")):
            return first
    return ""
