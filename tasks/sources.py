"""Where calibration text comes from: a text file, a folder that `datasets` reads, or a dataset of the Hub.

`pin` says which bytes a name means right now, cheaply; `open_split` opens rows as a stream.
"""

import glob
import hashlib
import logging
import os
from collections.abc import Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from elder.errors import UserError, nearest
from elder.files import refuse_pointer
from elder.model.hub import DATASET, MODEL, find, plain_refusals, require_online
from elder.names import (
    COMPRESSED,
    ROWS,
    TEXT,
    format_of,
    gguf_file,
    is_hub_id,
    shown,
    split_revision,
)
from elder.params import Calibration
from elder.record import Json

TEXT_SUFFIXES = {".txt", ".text", ".md", ".raw", *ROWS, *COMPRESSED}
FILE, FOLDER, HUB = "file", "folder", "hub"  # kinds of sources
TOKENIZER_FILES = (
    "config.json",
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
)


def kind_of(source: str, root: Path = Path()) -> str:
    """Say what a calibration source is: ``file``, ``folder`` or ``hub``.

    Args:
        source: as the user named it.
        root: folder that a relative path starts from.

    Raises:
        UserError: if it was meant as a path, and nothing is there.
    """
    path = root / Path(source).expanduser()
    if path.is_file():
        return FILE
    if path.is_dir():
        if not any(file.is_file() for file in path.rglob("*")):
            raise UserError(
                f"the calibration folder {source!r} is empty; it must hold a dataset"
            )
        return FOLDER
    if looks_local(source):
        raise UserError(
            f"there is no calibration text {source!r}{similar(path)}"
            " Give a UTF-8 file, a folder or a Hub dataset: set calibration.source"
        )
    return HUB


def refuse_unreadable(path: Path) -> None:
    """Refuse a file that holds nothing, or whose compression nothing here can read.

    Raises:
        UserError: saying which.
    """
    if not path.stat().st_size:
        raise UserError(
            f"the text {str(path)!r} is empty; it must hold at least one block of text"
        )
    if path.suffix.lower() == ".zst" and not find_spec("zstandard"):
        raise UserError(
            f"{str(path)!r} needs the package zstandard: pip install zstandard, or decompress it first"
        )
    if path.suffix.lower() == ".zip":
        _refuse_archive(path)


def _refuse_archive(path: Path) -> None:
    """Refuse a .zip that is more than one compressed text: of several files only the first would be read."""
    try:
        with ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except BadZipFile as error:
        raise UserError(
            f"{str(path)!r} cannot be decompressed: {error}; decompress it first"
        ) from None
    rows = has_rows(path.name)
    if len(names) != 1 or (format_of(names[0]) is not None and not rows):
        raise UserError(
            f"{str(path)!r} is an archive that holds {', '.join(map(shown, names[:2])) or 'nothing'}; unpack it, and "
            "name one file or the folder"
        )


def _table(path: Path) -> dict[str, Json]:
    """Return how a .csv or .tsv is read: an empty cell is null, and the words NA and null are text."""
    separator = "\t" if ".tsv" in path.name.lower() else ","
    return {"sep": separator, "keep_default_na": False, "na_values": [""]}


def has_rows(source: str) -> bool:
    """Say whether a file has rows and columns, by its name."""
    return format_of(source) not in (None, TEXT)


def pin(calibration: Calibration) -> dict[str, Json]:
    """Say which bytes the calibration source means right now.

    Returns:
        ``kind`` (file, folder or hub), ``source``, and ``sha256`` of what lies on disk or ``revision``, a commit.

    Raises:
        UserError: if there is no such source, or the Hub cannot be asked.
    """
    source = calibration.source
    kind = kind_of(source)
    if kind == FILE:
        return pin_text(source)
    if kind == FOLDER:
        folder = Path(source).expanduser()
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return {"kind": kind, "source": source, "sha256": digest(files)}
    commit = find(source, calibration.revision, DATASET).commit
    return {"kind": kind, "source": source, "revision": commit}


def pin_text(source: str) -> dict[str, Json]:
    """Say which bytes a text file holds right now.

    Raises:
        UserError: if there is no such file.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            f"there is no text file {source!r}{similar(path)} Give the path of a plain UTF-8 text"
        )
    refuse_pointer(path)
    return {"kind": "file", "source": source, "sha256": digest([path])}


def similar(path: Path) -> str:
    """Go on with a sentence about a missing file: the name that was probably meant, or just a full stop."""
    beside = (
        [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    )
    close = get_close_matches(path.name, beside, n=1)
    return f"; did you mean {str(path.with_name(close[0]))!r}?" if close else "."


def looks_local(name: str) -> bool:
    """Say whether a name that is not on disk was meant as a path: the Hub knows no such id."""
    return Path(name).suffix in TEXT_SUFFIXES or not is_hub_id(name)


def digest(files: list[Path]) -> str:
    """Return the sha256 of one file, or over names and digests of several."""
    digests = []
    for file in files:
        with file.open("rb") as handle:
            digests.append(hashlib.file_digest(handle, "sha256").hexdigest())
    if len(files) == 1:
        return digests[0]
    root = os.path.commonpath([str(file.parent) for file in files])
    lines = [
        f"{value}  {file.relative_to(root).as_posix()}\n"
        for value, file in zip(digests, files, strict=True)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def pin_tokenizer(name: str, revision: str | None) -> dict[str, Json]:
    """Say which tokenizer the model's name means right now: a digest of its small files, or the Hub's commit.

    A GGUF file holds its tokenizer beside the weights, and counts as a whole.

    Raises:
        UserError: if there is no such folder, it holds no tokenizer, or the Hub cannot be asked.
    """
    path = Path(name).expanduser()
    file = gguf_file(str(path))
    if file is not None and file.is_file():
        return {"kind": "file", "source": name, "sha256": digest([file])}
    if path.is_dir():
        files = sorted(
            {file for pattern in TOKENIZER_FILES for file in path.glob(pattern)}
        )
        if not any(file.name != "config.json" for file in files):
            raise UserError(
                f"the model folder {name!r} holds no tokenizer; save one there with save_pretrained"
            )
        return {"kind": "folder", "source": name, "sha256": digest(files)}
    hub_name, named = split_revision(name)
    if not is_hub_id(hub_name):
        raise UserError(
            f"there is no model folder {name!r}; name a folder with a checkpoint, or a Hub id"
        )
    commit = find(hub_name, named or revision, MODEL).commit
    return {"kind": HUB, "source": name, "revision": commit}


def rows_of(calibration: Calibration, pinned: dict[str, Json]) -> Iterator[Any]:
    """Yield the rows of a split; only the Hub needs the network, and may fall silent at any of them."""
    source = calibration.source
    try:
        with plain_refusals(source, calibration.revision, DATASET):
            yield from open_split(calibration, pinned)
    except UserError:
        raise
    except Exception as error:
        # builders raise many kinds; each means that this is no readable dataset
        cause = error.__cause__ or error
        raise UserError(
            f"the dataset {source!r} cannot be read: {one_line(cause)}{_way_out(cause, calibration)}"
        ) from None


def _way_out(error: BaseException, calibration: Calibration) -> str:
    """Go on with a sentence about rows that cannot be read, where there is a way."""
    if isinstance(error, UnicodeDecodeError):
        return "; convert it to UTF-8 first, for example with iconv"
    if "cast array" in str(error):
        return f"; a column changes its kind: copy column {calibration.column!r} alone into a file"
    if "JSON parse error" in str(error):
        return f"; each line must be a JSON object with the column {calibration.column!r} (calibration.column)"
    if "tokenizing" in str(error):
        return "; columns are separated by commas in .csv, by tabs in .tsv"
    if "::" in calibration.source or glob.has_magic(calibration.source):
        return "; '::', '*', '?' and '[' in a name are patterns to the package datasets: rename it"
    return ""


def open_split(calibration: Calibration, pinned: dict[str, Json]) -> Any:
    """Open one split as an iterable of rows."""
    import datasets

    # what a file is refused for is said once, in the sentence of `rows_of`
    datasets.logging.set_verbosity(logging.CRITICAL)
    source, split = calibration.source, calibration.split
    path = Path(source).expanduser()
    if pinned["kind"] == HUB:
        require_online(source, DATASET)
    if pinned["kind"] == FILE:
        refuse_unreadable(path)
        kind = str(format_of(source))
        splits = datasets.load_dataset(
            kind,
            data_files={split: glob.escape(str(path))},
            streaming=True,
            **(_table(path) if kind == "csv" else {}),
        )
    elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        splits = datasets.load_from_disk(str(path))
    elif pinned["kind"] == FOLDER:
        whole = (
            {"sample_by": "document"}
            if {file.suffix for file in path.iterdir()} == {".txt"}
            else {}
        )
        splits = datasets.load_dataset(
            str(path), calibration.config, streaming=True, **whole
        )
    else:
        splits = datasets.load_dataset(
            source, calibration.config, revision=pinned["revision"], streaming=True
        )
    if not isinstance(splits, dict):  # a single Dataset saved without its split's name
        return splits
    if split not in splits:
        raise UserError(
            f"{source!r} has no split {split!r}; {nearest(split, map(str, splits))}"
        )
    return splits[split]


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
