"""What a result depends on, said once: every cache, resume and comparison asks a fingerprint.

A fingerprint is a set of named parts, plain values or digests. Two results may stand for each other where their
fingerprints have one digest; where they have not, ``differences`` names the parts. A part comes from the recipe, the
model, the calibration text or the protocol of measurement: nothing else that a user can set counts.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from elder.errors import UserError
from elder.files import file_digest
from elder.params import Params
from elder.params.catalogue import NONE
from elder.record import Json

# the sections that say how a model is made shallower
RECIPE = ("select", "regularise", "compensate", "recover")
# of ``evaluate``: how much of what is read; batches do not count
READING = ("seq_len", "max_tokens", "tasks", "limit")
VERSIONS = ("elder", "torch", "transformers")  # numbers may change with each of them
SHORT = 12  # characters of a digest that tell the results in one folder apart
CACHES = re.compile(r"(^|/)(\.|__pycache__/)")


@dataclass(frozen=True)
class Fingerprint:
    """All that a result depends on: {name of a part: plain JSON value}."""

    parts: Mapping[str, Json]

    @property
    def digest(self) -> str:
        """Return the sha256 over all parts."""
        text = json.dumps(self.parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def short(self) -> str:
        """Return the first characters of the digest, for names of files."""
        return self.digest[:SHORT]

    def differences(self, other: "Fingerprint") -> list[str]:
        """Return the names of the parts that are not the same in both."""
        names = sorted({*self.parts, *other.parts})
        return [name for name in names if self.parts.get(name) != other.parts.get(name)]

    def __or__(self, more: Mapping[str, Json]) -> "Fingerprint":
        """Return a fingerprint with further parts."""
        return Fingerprint({**self.parts, **more})


def recipe_of(settings: Params) -> dict[str, Json]:
    """Return the sections that say how a model is made shallower, as plain values."""
    tree = settings.model_dump(mode="json")
    recipe: dict[str, Json] = {section: tree[section] for section in RECIPE}
    # the settings of what was not chosen bear on nothing
    mending = settings.compensate
    if settings.compensation == NONE:
        mending = mending.model_copy(update={"method": NONE})
    return recipe | {
        "select": choice_of(settings),
        "compensate": mending.own(),
        "recover": settings.recover.own(),
    }


def choice_of(settings: Params) -> dict[str, Json]:
    """Return what the choice of layers depends on, as plain values: where layers lie bears on what is written alone."""
    chosen: dict[str, Json] = settings.select.own()
    elsewhere = chosen.pop("offload") != "none"
    own = chosen.get(settings.select.method, {})
    if elsewhere and own.get("written") == "auto":
        own["written"] = 0
    return chosen


def model_parts(settings: Params) -> dict[str, Json]:
    """Return what says which model it is and what runs it: its section, the stamps of a local folder's files, versions.

    Weights are too large to be read again and again: size and time of change stand for them. A Hub model is pinned by
    its revision. The device is the one that is used: ``auto`` means another one on another machine.

    Raises:
        UserError: if this machine does not have the device.
    """
    from elder.device import device_of

    wanted = settings.model.model_dump(mode="json")
    wanted["device"] = str(device_of(settings.model.device))
    return {
        "model": wanted,
        "model files": file_stamps(Path(settings.model.name)),
        "versions": {name: package_version(name) for name in VERSIONS},
    }


def calibration_parts(settings: Params, source: Path | None = None) -> dict[str, Json]:
    """Return what says which text the layers are judged and trained on.

    Args:
        settings: all parameters.
        source: the text, or blocks chosen earlier; None takes ``calibration.source``. The digest of a file that is
            missing is None: whoever reads it says so.
    """
    path = Path(settings.calibration.source) if source is None else source
    return {
        "calibration": settings.calibration.model_dump(mode="json"),
        "calibration text": file_digest(path) if path.is_file() else None,
    }


def protocol_parts(settings: Params, root: Path = Path()) -> dict[str, Json]:
    """Return what says how a model is measured: the texts, the tasks, and how much of them is read.

    Args:
        settings: all parameters.
        root: folder that relative paths start from.

    Raises:
        UserError: if a text or the folder of task data is missing.
    """
    chosen = settings.evaluate
    reading = chosen.model_dump(mode="json", include=set(READING))
    # what ``auto`` follows
    reading["calibration.seq_len"] = settings.calibration.seq_len
    reading["calibration.bos"] = settings.calibration.bos
    parts: dict[str, Json] = {
        "text in domain": text_digest(root / chosen.in_domain),
        "text out of domain": text_digest(root / chosen.out_of_domain),
        "evaluate": reading,
    }
    if chosen.tasks:
        parts["lm-eval"] = package_version("lm_eval")
        parts["task data"] = (
            folder_digest(root / chosen.task_data) if chosen.task_data else None
        )
    return parts


def file_stamps(place: Path) -> list[Json]:
    """Return name, size and time of change of a model's files, or of its one file; an edited card does not count."""
    files = [place] if place.is_file() else []
    if place.is_dir():
        files = sorted(place.iterdir())
    stamps: list[Json] = []
    for path in files:
        if path.is_file() and path.suffix != ".md":
            status = path.stat()
            stamps.append([path.name, status.st_size, status.st_mtime_ns])
    return stamps


def text_digest(path: Path) -> str:
    """Return the sha256 of a text.

    Raises:
        UserError: if it is missing.
    """
    if not path.is_file():
        raise UserError(
            f"there is no text file {str(path)!r}; give the path of a plain UTF-8 text"
        )
    return file_digest(path)


def folder_digest(folder: Path) -> str:
    """Return the sha256 over the names and contents of all files below a folder, hidden ones and caches left out.

    Raises:
        UserError: if it is missing.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder of task data {str(folder)!r}; set evaluate.task_data"
        )
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not CACHES.search(name):
            digest.update(f"{name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def package_version(name: str) -> str | None:
    """Return the version of a package, or None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
