"""What every store has in common: content-addressed models, each whole or not there."""

import logging
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from elder.errors import UserError
from elder.names import path_fault, path_faults, registered_name_fault, shown
from elder.secrecy import hide_secrets
from tasks.errors import plain_errors
from tasks.store.manifest import (
    MANIFEST,
    MLFLOW_NOTE,
    PUBLISH_AGAIN,
    File,
    Files,
    describe,
    difference,
    digest,
    dump,
    fingerprint,
    parse,
)
from tasks.store.tree import Tree

MOST_FILES = 10_000  # of a model; the largest has a few hundred
_log = logging.getLogger(__name__)


class Published(BaseModel):
    """Where a model lies, its digest, its files by relative path, and how many bytes of them had to be sent."""

    model_config = ConfigDict(frozen=True)
    url: str
    digest: str
    files: Files
    uploaded_bytes: int


@dataclass(frozen=True)
class Lying:
    """What lies at a model's place.

    Attributes:
        folder: a folder with it, except for what is astray.
        astray: what no stored model has, by its name, and what is wrong with it; it was neither copied nor opened.
    """

    folder: Path
    astray: dict[str, str] = field(default_factory=dict)


class Store(ABC):
    """What a local folder and an S3 prefix have in common; keys are paths relative to the store, with ``/``."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def check(self, creates: bool = True) -> None:
        """Refuse a store that cannot be reached or written, before any work is done.

        Args:
            creates: decisions lie there, too, so that it must be able to create without ever replacing.

        Raises:
            UserError: if so.
        """

    def publish(self, folder: Path, name: str) -> Published:
        """Store all files of a folder as a version of the model ``name``.

        Files that are there already are not sent again: an interrupted call resumes, a repeated one moves nothing.
        A model that is whole already is read again, all bytes of it, and what is damaged is sent: so a store is mended.

        Raises:
            UserError: the folder is missing, empty or has a manifest.json, the name is not usable, the store refuses.
        """
        fault = registered_name_fault(name)
        if fault:
            raise UserError(f"model name {name!r}: {fault}")
        files = describe(Path(folder))
        for reserved in {MANIFEST, MLFLOW_NOTE} & files.keys():
            raise UserError(
                f"{folder} holds a {reserved}, a name that the store needs: remove or rename it"
            )
        prefix, sent = f"models/{name}/{digest(files)}", 0
        whole = self.read(f"{prefix}/{MANIFEST}") is not None

        def there(path: str, file: File) -> bool:
            key = f"{prefix}/{path}"
            return self._measure(key) == file if whole else self._has(key, file)

        for path, file in files.items():
            if not there(path, file):
                _log.info("storing %s, %d bytes", path, file.bytes)
                sent += self._send(Path(folder) / path, f"{prefix}/{path}", file)
        manifest = dump(files)
        if not there(MANIFEST, fingerprint(manifest)):
            self._write(f"{prefix}/{MANIFEST}", manifest)
        return Published(
            url=f"{self.url}/{prefix}",
            digest=digest(files),
            files=files,
            uploaded_bytes=sent,
        )

    def manifest(self, url: str) -> Files:
        """Return the files of a published model by relative path.

        Raises:
            UserError: there is no whole model at ``url``, or its manifest is damaged.
        """
        prefix = self._prefix(url)
        data = self.read(_join(prefix, MANIFEST))
        if data is None:
            raise UserError(
                f"{self._show(prefix)} is no published model: it has no {MANIFEST}; publish it first"
            )
        return parse(data, self._show(prefix))

    def fetch(self, url: str, target: Path, wanted: str | None = None) -> Path:
        """Copy a published model to a new folder, checking the sha256 of every file.

        Args:
            url: what ``publish`` returned, or the same relative to the store.
            target: folder to make; one that holds exactly this model already is returned as it is.
            wanted: digest that the model must have; None: any.

        Raises:
            UserError: there is no whole model at ``url``, or another one than is wanted, a file is damaged, or
                ``target`` cannot be written.
        """
        prefix, target, files = (
            self._prefix(url),
            Path(target).absolute(),
            self.manifest(url),
        )
        if wanted not in (None, digest(files)):
            raise UserError(
                f"{self._show(prefix)} became another model while it was read: try again"
            )
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with plain_errors(target):
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                if target.is_dir() and describe(target) == files:
                    return target
                raise UserError(
                    f"{target} holds something else already: name a new folder"
                )
            try:
                for path, file in files.items():
                    self._fetch_file(_join(prefix, path), part / path, file)
                os.replace(part, target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return target

    def verify(self, url: str) -> list[str]:
        """Read a published model again and return its faults, one sentence each; none if it is what it was.

        Raises:
            UserError: the store cannot be read.
        """
        prefix = self._prefix(url)
        data = self.read(_join(prefix, MANIFEST))
        if data is None:
            return [f"{MANIFEST} is missing"]
        try:
            files = parse(data, self._show(prefix))
        except UserError as error:
            return [str(error)]
        tree = self.listing(prefix)
        astray = tree.odd | path_faults(tree.sizes)
        faults = [f"{shown(path)} {fault}" for path, fault in sorted(astray.items())]
        for path in sorted(tree.sizes.keys() - files.keys() - astray.keys()):
            if path != MANIFEST:
                faults.append(f"{path} is not in the manifest")
        differences = []
        for path, file in files.items():
            if path not in tree.odd:
                there = (
                    self._measure(_join(prefix, path)) if path in tree.sizes else None
                )
                differences.append(difference(path, there, file))
        return faults + [fault for fault in differences if fault]

    def as_it_lies(self, url: str, target: Path) -> Lying:
        """Return all that lies at a model's place, its manifest included, unchecked: for an audit.

        Args:
            url: as for ``fetch``.
            target: folder to copy to; nothing is copied where the store is a local folder itself.

        Raises:
            UserError: nothing lies there, or more than a model can be, or the store cannot be read.
        """
        prefix = self._prefix(url)
        tree = self.listing(prefix)
        astray = tree.odd | path_faults(tree.sizes)
        sizes = {path: size for path, size in tree.sizes.items() if path not in astray}
        self._refuse_absurd(prefix, tree, target)
        with plain_errors(target):
            target.mkdir(parents=True, exist_ok=True)
            for path in sizes:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                self._receive(_join(prefix, path), target / path)
        return Lying(target, astray)

    def _refuse_absurd(self, prefix: str, tree: Tree, target: Path) -> None:
        """Refuse a place that is empty, or that holds more than there is room for."""
        there, place = len(tree.sizes) + len(tree.odd), self._show(prefix)
        if not there:
            raise UserError(
                f"nothing lies at {place}: the registry points to a place that is empty"
            )
        if there > MOST_FILES:
            raise UserError(
                f"{place} holds {there} files, and no model has more than {MOST_FILES}: remove what is not the model's"
            )
        size, room = sum(tree.sizes.values()), shutil.disk_usage(target.parent).free
        if size > room:
            raise UserError(
                f"{place} holds {size} bytes, and there is room for {room} in {target.parent}: free some space,"
                " or set TMPDIR to a larger disk"
            )

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Store a small object if there is nothing at ``key``, and say so; of several at once, one gets True.

        Raises:
            UserError: the store refuses.
        """

    @abstractmethod
    def how_kept(self, folder: str) -> str:
        """Say whether what was created in a folder can be replaced or deleted, and what then stays, by trying it.

        Raises:
            UserError: the store cannot be reached.
        """

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """Return all bytes of a small object, or None where there is nothing.

        Raises:
            UserError: it is not small, or the store cannot be read.
        """

    @abstractmethod
    def listing(self, prefix: str) -> Tree:
        """Return what lies below ``prefix``, whatever its names; nothing is opened, no link is followed."""

    def paths(self, prefix: str) -> set[str]:
        """Return the paths of all files below ``prefix``, relative to it, whatever their names."""
        return set(self.listing(prefix).sizes)

    def _fetch_file(self, key: str, target: Path, file: File) -> None:
        size = self._size(key)
        if size is not None and size != file.bytes:  # which may be far too many to copy
            fault = (
                f"{self._show(key)} has {size} bytes, the manifest says {file.bytes}"
            )
            raise UserError(f"the store is damaged: {fault}; publish the model again")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._receive(key, target)
        fault = difference(self._show(key), fingerprint(target), file)
        if fault:
            raise UserError(f"the store is damaged: {fault}; {PUBLISH_AGAIN}")

    def _prefix(self, url: str) -> str:
        inside = f"{url}/".startswith(f"{self.url}/")
        prefix = url[len(self.url) :].strip("/") if inside else url.rstrip("/")
        if prefix and path_fault(prefix):
            raise UserError(f"{hide_secrets(url)} does not lie in the store {self.url}")
        return prefix

    def _show(self, key: str) -> str:
        return _join(self.url, key)

    @abstractmethod
    def _has(self, key: str, file: File) -> bool:
        """Say whether these bytes are stored, by what is quickly known of them; ``_measure`` proves it."""

    @abstractmethod
    def _send(self, source: Path, key: str, file: File) -> int:
        """Store a file, streamed, and return the bytes sent; like ``_write``, it appears whole or not at all."""

    @abstractmethod
    def _write(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def _receive(self, key: str, target: Path) -> None: ...

    @abstractmethod
    def _size(self, key: str) -> int | None:
        """Return the bytes of an object, None where there is nothing."""

    @abstractmethod
    def _measure(self, key: str) -> File | None:
        """Read all bytes, streamed, for their fingerprint; None where there is nothing."""


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)
