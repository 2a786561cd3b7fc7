"""Write a model folder whole or not at all: checkpoint, tokenizer, ``elder.json`` and a model card."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elder.data import file_digest
from elder.errors import UserError


def check_output(folder: Path) -> None:
    """Refuse an output folder that holds something, or that cannot be made.

    Raises:
        UserError: before any work is done.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"the output folder {str(folder)!r} already holds something; name a new or an empty one")
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


def save_model(model: Any, tokenizer: Any, folder: Path, record: dict[str, Any] | None = None) -> str:
    """Write an ordinary checkpoint that stock transformers loads, by rename.

    Args:
        model: in the dtype it should be saved in.
        tokenizer: its tokenizer.
        folder: absent or empty.
        record: what goes into ``elder.json`` and the model card; None writes neither.

    Returns:
        sha256 of the weights' files: of the one file, or over the list of all of them.
    """
    from elder.card import model_card

    with whole_folder(folder) as partial:
        try:
            model.save_pretrained(partial, safe_serialization=True)
            tokenizer.save_pretrained(partial)
        except OSError:
            raise
        except Exception as error:  # safetensors wraps a full disk in a type of its own
            raise OSError(str(error)) from None
        digest = weights_file_digest(partial)
        if record is not None:
            text = json.dumps({**record, "sha256": digest}, indent=1, allow_nan=False)
            (partial / "elder.json").write_text(text + "\n", encoding="utf-8")
            (partial / "README.md").write_text(model_card(record), encoding="utf-8")
    return digest


def weights_file_digest(folder: Path) -> str:
    """Return the sha256 of a folder's weights: of the one safetensors file, or over the lines of all of them."""
    import hashlib

    files = sorted(folder.glob("*.safetensors"))
    digests = [file_digest(path) for path in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON by rename, so that a reader finds all of it or nothing."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
