"""What a result depends on, said once: every cache, resume and comparison asks a fingerprint.

A fingerprint is a set of named parts, plain values or digests. Two results may stand for each other where their
fingerprints have one digest; where they have not, ``differences`` names the parts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elder import __version__
from elder.errors import UserError
from elder.files import file_digest
from elder.params import Params

RECIPE = ("select", "regularise", "compensate", "recover")  # the sections that say how a model is made shallower
SHORT = 12  # characters of a digest that tell the results in one folder apart


@dataclass(frozen=True)
class Fingerprint:
    """All that a result depends on: {name of a part: plain JSON value}."""

    parts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return the sha256 over all parts."""
        text = json.dumps(self.parts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def short(self) -> str:
        """Return the first characters of the digest, for names of files."""
        return self.digest[:SHORT]

    def differences(self, other: "Fingerprint") -> list[str]:
        """Return the names of the parts that are not the same in both."""
        names = sorted({*self.parts, *other.parts})
        return [name for name in names if self.parts.get(name) != other.parts.get(name)]

    def __or__(self, more: Mapping[str, Any]) -> "Fingerprint":
        """Return a fingerprint with further parts."""
        return Fingerprint({**self.parts, **more})


def recipe_of(settings: Params) -> dict[str, Any]:
    """Return the sections that say how a model is made shallower, as plain values."""
    tree = settings.model_dump(mode="json")
    return {section: tree[section] for section in RECIPE}


def model_parts(settings: Params) -> dict[str, Any]:
    """Return what says which model it is: its section, and the stamps of a local folder's files.

    Weights are too large to be read again and again: size and time of change stand for them. A Hub model is pinned by
    its revision. The version of this project counts, too.
    """
    return {
        "model": settings.model.model_dump(mode="json"),
        "model files": file_stamps(Path(settings.model.name)),
        "version": __version__,
    }


def file_stamps(folder: Path) -> list[list[Any]]:
    """Return name, size and time of change of a model's files; a card that was edited since does not count."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix != ".md":
            status = path.stat()
            found.append([path.name, status.st_size, status.st_mtime_ns])
    return found


def text_digest(path: Path) -> str:
    """Return the sha256 of a text.

    Raises:
        UserError: if it is missing.
    """
    if not path.is_file():
        raise UserError(f"there is no text file {str(path)!r}; give the path of a plain UTF-8 text")
    return file_digest(path)
