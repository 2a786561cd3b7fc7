"""The store in a local folder, made by the first ``publish``."""

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from elder.errors import UserError
from tasks.errors import plain_errors
from tasks.store.base import Store
from tasks.store.manifest import File, changed, fingerprint

DAY = 24 * 3600.0
PROBE = ".write-check"


class LocalStore(Store):
    """A store in a local folder, made by the first ``publish``."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().resolve()
        super().__init__(str(self.root))

    def fetch(self, url: str, target: Path) -> Path:
        """See ``Store``; a target among the published models is refused."""
        models = self.root / self._prefix(url).partition("/")[0]
        if Path(target).resolve().is_relative_to(models):
            raise UserError(
                f"{target} lies inside the store {self.root}: name a folder elsewhere"
            )
        return super().fetch(url, target)

    def as_it_lies(self, url: str, target: Path) -> Path:
        """See ``Store``; the model's own folder is returned."""
        folder = self.root / self._prefix(url)
        return folder if folder.is_dir() else super().as_it_lies(url, target)

    def check(self, creates: bool = True) -> None:
        """See ``Store``; the folder is made. A file system without hard links cannot create without replacing."""
        with plain_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=PROBE, dir=self.root) as folder:
                if creates:
                    self._prove_creates(Path(folder))

    def _prove_creates(self, folder: Path) -> None:
        first, second = folder / "first", folder / "second"
        first.touch()
        try:
            os.link(first, second)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            raise UserError(
                f"{self.root}: its file system has no hard links ({error.strerror}), so that an old decision could undo"
                " a newer one: set store.url to a folder on another file system, or to s3://bucket/prefix"
            ) from error

    def create(self, key: str, data: bytes) -> bool:
        """See ``Store``; a hard link, unlike a rename, never replaces what is there."""
        with plain_errors(self.root), self._incoming(key) as (part, handle):
            handle.write(data)
            _to_disk(handle)
            try:
                os.link(part, self.root / key)
            except FileExistsError:
                return False
            _folder_to_disk((self.root / key).parent)
        return True

    def read(self, key: str) -> bytes | None:
        """See ``Store``."""
        with plain_errors(self.root):
            return (
                (self.root / key).read_bytes() if (self.root / key).is_file() else None
            )

    def paths(self, prefix: str) -> set[str]:
        """See ``Store``."""
        folder = self.root / prefix
        return {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file()
        }

    def _has(self, key: str, file: File) -> bool:
        return self._measure(key) == file

    def _send(self, source: Path, key: str, file: File) -> int:
        with (
            plain_errors(self.root),
            self._replacing(key) as target,
            source.open("rb") as handle,
        ):
            shutil.copyfileobj(handle, target, 1 << 20)
            target.flush()
            if fingerprint(Path(target.name)) != file:
                raise changed(source)
        return file.bytes

    def _write(self, key: str, data: bytes) -> None:
        with plain_errors(self.root), self._replacing(key) as target:
            target.write(data)

    def _receive(self, key: str, target: Path) -> None:
        shutil.copyfile(self.root / key, target)

    def _measure(self, key: str) -> File | None:
        with plain_errors(self.root):
            return fingerprint(self.root / key) if (self.root / key).is_file() else None

    @contextmanager
    def _replacing(self, key: str) -> Iterator[BinaryIO]:
        """Open a temporary file that becomes ``key`` by rename, bytes on the disk first."""
        with self._incoming(key) as (part, handle):
            yield handle
            _to_disk(handle)
            os.replace(part, self.root / key)
            _folder_to_disk((self.root / key).parent)

    @contextmanager
    def _incoming(self, key: str) -> Iterator[tuple[Path, BinaryIO]]:
        """Open a temporary file on its way to ``key``, gone at the end.

        Temporary files lie beside the models, not among them: whoever lists a model's folder sees only its files.
        """
        incoming = self.root / ".incoming"
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        incoming.mkdir(exist_ok=True)
        for stale in incoming.iterdir():  # left by a killed process
            with suppress(FileNotFoundError):  # another process was faster
                if time.time() - stale.stat().st_mtime > DAY:
                    stale.unlink()
        part = incoming / uuid.uuid4().hex
        try:
            with part.open("xb") as handle:
                yield part, handle
        finally:
            part.unlink(missing_ok=True)


def _to_disk(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _folder_to_disk(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)
