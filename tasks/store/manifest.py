"""The manifest of a stored model: files with sha256 and size, and the digest over them that names the model."""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elder.errors import UserError
from elder.files import parse_json
from tasks.errors import plain_errors

MANIFEST = "manifest.json"
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
        return File(
            sha256=hashlib.file_digest(handle, "sha256").hexdigest(),
            bytes=handle.tell(),
        )


def describe(folder: Path) -> Files:
    """Fingerprint all files of a folder; a UserError where there is none."""
    with plain_errors(folder):
        files = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file()
        }
        if not files:
            raise UserError(
                f"{folder} is empty or not a folder: name the folder of a saved model"
            )
        return {path: fingerprint(files[path]) for path in sorted(files)}


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
    for path in files:
        if not _inside(path):
            raise UserError(
                f"{place}: {MANIFEST} names {path!r}, which lies outside the model; do not use this model"
            )
    folder = place.rpartition("/")[2]
    in_its_place = folder == content.digest or not re.fullmatch("[0-9a-f]{64}", folder)
    if digest(files) != content.digest or not in_its_place:
        raise UserError(
            f"{place}: {MANIFEST} does not match its digest; {PUBLISH_AGAIN}"
        )
    return files


def _inside(path: str) -> bool:
    """Say whether a relative path stays below the folder that it starts from."""
    if path in ("", ".") or path.startswith("/") or "\\" in path:
        return False
    return ".." not in PurePosixPath(path).parts


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
