"""What a model's or a dataset's name means, and what a model or a file may be called. One rule for all who ask."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from elder.errors import UserError

REGISTERED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_REGISTERED = 200  # characters: MLflow takes 256, a folder's name 255 bytes
LONGEST_PATH = 1024  # bytes: what a key may have in S3
LONGEST_PART = 255  # bytes: what a file's name may have on a disk
LONGEST_SHOWN = 200  # characters of a foreign name in a message
GGUF = ".gguf"  # how the names of such files end
DRIVE = re.compile(r"[A-Za-z]:")
# {how the name of a file with rows ends: the reader of `datasets`}
ROWS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".jsonlines": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
TEXT = "text"  # the format of a plain text that is compressed
UNSEEN = {
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
}  # control, invisible, half a character, line breaks


def format_of(name: str) -> str | None:
    """Say what a text file is by its name: json, csv, parquet or arrow, text where only compressed; None: plain."""
    path = Path(name.lower())
    compressed = path.suffix in COMPRESSED
    inner = path.with_suffix("").suffix if compressed else path.suffix
    return ROWS.get(inner, TEXT if compressed else None)


def is_hub_id(name: str) -> bool:
    """Say whether a name, its revision taken off, may be an id on the Hub: ``gpt2`` or ``owner/name``.

    What is on disk is no id, nor is what lies, by its name, in a folder that is here: that is a mistyped path. Neither
    is the name of a GGUF file.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(name)
    in_folder = len(path.parts) > 1 and path.parent.is_dir()
    if in_folder or path.exists() or path.suffix.lower() == GGUF:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def gguf_file(source: str) -> Path | None:
    """Return the GGUF file that a model's name means: itself, or the only one in a folder that has no safetensors.

    Raises:
        UserError: if there are several in the folder.
    """
    path = Path(source)
    if not path.is_dir():
        return path if path.suffix.lower() == GGUF else None
    if any(path.glob("*.safetensors")):
        return None
    files = sorted(file for file in path.glob(f"*{GGUF}") if file.is_file())
    if len(files) > 1:
        raise UserError(
            f"{source!r} holds {len(files)} GGUF files; name one of them, such as {str(files[0])!r}"
        )
    return files[0] if files else None


def registered_name_fault(name: str) -> str | None:
    """Say what is wrong with the name of a registered model, or None.

    The name is a folder in the store, a prefix in S3 and a name in MLflow, which takes neither ``/`` nor ``:``.
    """
    if len(name) > LONGEST_REGISTERED:
        return f"give at most {LONGEST_REGISTERED} characters"
    if not REGISTERED.fullmatch(name):
        return "use letters, digits, '.', '_' and '-', a letter or digit first"
    return None


def split_revision(name: str) -> tuple[str, str | None]:
    """Split ``owner/name@revision`` of the Hub; a folder keeps its name whole.

    Raises:
        UserError: if no model stands before the ``@``, or a folder, which has no revisions.
    """
    if "@" not in name or Path(name).exists():
        return name, None
    base, _, revision = name.rpartition("@")
    if not base:
        raise UserError(f"{name!r} names a revision of no model: give owner/name{name}")
    refuse_revision(base, revision)
    return base, revision


def refuse_revision(name: str, revision: str | None) -> None:
    """Refuse the revision of a model that is a folder or a file.

    Raises:
        UserError: there is one.
    """
    if revision is not None and Path(name).exists():
        raise UserError(
            f"{name!r} is on this machine and has no revision {revision!r}: only a model of the Hub has; leave it out"
        )


def hub_id(name: str) -> str | None:
    """Return the Hub id that a model's name stands for, or None for a folder, an S3 prefix or a registry's model."""
    base = split_revision(name)[0]
    return base if is_hub_id(base) else None


def path_fault(path: str) -> str | None:
    """Say why a file may not be called so, or None. Every name that comes from elsewhere is asked this before its use.

    Elsewhere is a store, a manifest, the index of a checkpoint, a record, a bill of materials. A name must be relative,
    with ``/`` between its parts, and stay below the folder that it starts from, on every system.
    """
    if not path:
        return "is empty"
    if any(unicodedata.category(character) in UNSEEN for character in path):
        return "has a character that cannot be seen"
    if "\\" in path:
        return "has a backslash"
    parts = path.split("/")
    if parts[0] == "" or ".." in parts or DRIVE.match(path):
        return "leads outside"
    if "" in parts or "." in parts:
        return "has a part that is empty or '.'"
    if len(path.encode()) > LONGEST_PATH:
        return f"is longer than {LONGEST_PATH} bytes"
    if any(len(part.encode()) > LONGEST_PART for part in parts):
        return f"has a part longer than {LONGEST_PART} bytes"
    return None


def path_faults(paths: Iterable[str]) -> dict[str, str]:
    """Say of files that are to lie in one folder why some may not be called so; of two that clash, the later in order.

    Names clash where a system may take one for the other, which differ in case or Unicode form alone, and where one is
    to be a file and a folder.
    """
    names = sorted(set(paths))
    faults: dict[str, str] = {}
    seen: dict[
        str, str
    ] = {}  # files and folders as they are written, by their folded form
    files: set[str] = set()
    for name in names:
        fault = path_fault(name) or _clash(name, seen, files)
        if fault:
            faults[name] = fault
            continue
        files.add(name)
        seen.update((_folded(place), place) for place in _places(name))
    return faults


def shown(name: str) -> str:
    """Return a foreign name as a message may show it: quoted, escaped, and not at any length."""
    short = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."
    return ascii(short)


def _clash(name: str, seen: dict[str, str], files: set[str]) -> str | None:
    for place in _places(name):
        other = seen.get(_folded(place), place)
        if other != place:
            return f"differs from {shown(other)} in case or Unicode form alone"
        if place in files:
            return f"lies below {shown(place)}, which is a file"
    return None


def _places(name: str) -> list[str]:
    """Return the folders on the way to a file, and the file."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _folded(name: str) -> str:
    decomposed = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFD", decomposed)
