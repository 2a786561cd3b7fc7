"""The manifest of a stored model: files with sha256 and size, and the digest over them that names the model."""

import hashlib
import json
import re
from io import BufferedReader
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elder.errors import UserError
from elder.files import in_hub_blobs, parse_json
from elder.names import path_faults, shown
from tasks.errors import plain_errors
from tasks.store.tree import LINK, walk

MANIFEST = "manifest.json"
# MLflow leaves it in the folder that it loads a registered model from, a local store's own, too; nothing reads it
MLFLOW_NOTE = "registered_model_meta"
MEND = "python infra/restore.py NAME --folder runs/ID/model"
PUBLISH_AGAIN = f"publish the model again from its run's folder, which sends what is damaged or missing: {MEND}"


class File(BaseModel):
    """What one stored file must be."""

    model_config = ConfigDict(frozen=True)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


Files = dict[str, File]  # by path relative to the model's folder, with "/"


class Content(BaseModel):
    """What manifest.json holds."""

    digest: str
    files: Files


def fingerprint(source: Path | bytes) -> File:
    """Return sha256 and size of a file, streamed, or of a few bytes."""
    if isinstance(source, bytes):
        return File(sha256=hashlib.sha256(source).hexdigest(), bytes=len(source))
    with source.open("rb") as handle:
        return measure(handle)


def measure(handle: BufferedReader) -> File:
    """Return sha256 and size of an open file, read to its end."""
    sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    return File(sha256=sha256, bytes=handle.tell())


def describe(folder: Path) -> Files:
    """Fingerprint all files of a folder that is a model, or is to be one.

    A link of the Hub's cache into its own blobs counts as the file that it leads to; no other link is followed.

    Raises:
        UserError: there is no file, or something that no stored model has: a link, a special file, an unusable name.
    """
    with plain_errors(folder):
        tree = walk(folder)
        files, faults = set(tree.sizes), {}
        for name, what in tree.odd.items():
            if what == LINK and in_hub_blobs(folder, folder / name):
                files.add(name)
            else:
                faults[name] = what
        for name, fault in (faults | path_faults(files)).items():
            raise UserError(
                f"{folder}: {shown(name)} {fault}; a stored model has none such: remove it, or put a copy in its place"
            )
        if not files:
            raise UserError(
                f"{folder} is empty or not a folder: name the folder of a saved model"
            )
        return {path: fingerprint(folder / path) for path in sorted(files)}


def digest(files: Files) -> str:
    """Return the sha256 over the sorted list of (path, sha256, bytes)."""
    lines = sorted((path, file.sha256, file.bytes) for path, file in files.items())
    return hashlib.sha256(json.dumps(lines, separators=(",", ":")).encode()).hexdigest()


def dump(files: Files) -> bytes:
    """Return the content of manifest.json; the same files give the same bytes."""
    by_path = {path: files[path].model_dump() for path in sorted(files)}
    content = {"digest": digest(files), "files": by_path}
    return (json.dumps(content, indent=1) + "\n").encode()


def parse(data: bytes, place: str) -> Files:
    """Read a manifest that may come from anywhere: its paths must stay inside, its digest must be its own.

    Args:
        data: content of manifest.json.
        place: URL of the model; where its last part is a digest, the manifest must match that too.
    """
    try:
        content = Content.model_validate(parse_json(data, MANIFEST))
    except (ValidationError, UserError) as error:
        raise UserError(
            f"{place}: {MANIFEST} is not readable; {PUBLISH_AGAIN}"
        ) from error
    files = content.files
    if MANIFEST in files:
        raise UserError(f"{place}: {MANIFEST} names itself; do not use this model")
    for path, fault in path_faults([*files, MANIFEST]).items():
        raise UserError(
            f"{place}: {MANIFEST} names {shown(path)}, which {fault}; do not use this model"
        )
    folder = place.rpartition("/")[2]
    in_its_place = folder == content.digest or not re.fullmatch("[0-9a-f]{64}", folder)
    if digest(files) != content.digest or not in_its_place:
        raise UserError(
            f"{place}: {MANIFEST} does not match its digest; {PUBLISH_AGAIN}"
        )
    return files


def difference(name: str, actual: File | None, wanted: File) -> str:
    """Say how a file differs from its line in the manifest; an empty string if it does not."""
    if actual is None:
        return f"{name} is missing"
    if actual.bytes != wanted.bytes:
        return f"{name} has {actual.bytes} bytes, the manifest says {wanted.bytes}"
    if actual.sha256 != wanted.sha256:
        return f"{name} has sha256 {actual.sha256[:12]}..., the manifest says {wanted.sha256[:12]}..."
    return ""


def changed(source: Path) -> UserError:
    """Return the refusal of a file that is no longer what was fingerprinted."""
    return UserError(
        f"{source} changed while it was being stored: stop what writes to it and try again"
    )
