"""Files and folders that appear whole or not at all, and the digests of files."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elder.errors import UserError


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
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``folder`` to fill; it takes that name at the end, and vanishes on any failure.

    Raises:
        UserError: if the disk is full or the folder cannot be written.
    """
    temporary = folder.absolute().with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} cannot be written: {error.strerror or error}; free some space or name another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON by rename, so that a reader finds all of it or nothing."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
