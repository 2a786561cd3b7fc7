"""The store in a local folder, made by the first ``publish``."""

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from elder.errors import UserError
from elder.files import read_small
from elder.names import path_fault, path_faults, shown
from tasks.errors import plain_errors
from tasks.store.base import Lying, Store
from tasks.store.manifest import MLFLOW_NOTE, File, changed, fingerprint, measure
from tasks.store.tree import LINK, SPECIAL, Tree, walk

DAY = 24 * 3600.0
PROBE = ".write-check"


class LocalStore(Store):
    """A store in a local folder, made by the first ``publish``."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().resolve()
        super().__init__(str(self.root))

    def fetch(self, url: str, target: Path, wanted: str | None = None) -> Path:
        """See ``Store``; a target among the published models is refused."""
        models = self.root / self._prefix(url).partition("/")[0]
        if Path(target).resolve().is_relative_to(models):
            raise UserError(
                f"{target} lies inside the store {self.root}: name a folder elsewhere"
            )
        return super().fetch(url, target, wanted)

    def as_it_lies(self, url: str, target: Path) -> Lying:
        """See ``Store``; the model's own folder is returned, where nothing is wrong with what lies there."""
        prefix = self._prefix(url)
        link = self._link_on_the_way(prefix)
        if link:
            return Lying(target, {link: LINK})
        tree = self.listing(prefix)
        if not tree.sizes or tree.odd or path_faults(tree.sizes):
            return super().as_it_lies(url, target)
        return Lying(self.root / prefix)

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
                os.link(part, self._place(key))
            except FileExistsError:
                return False
            _folder_to_disk((self.root / key).parent)
        return True

    def how_kept(self, folder: str) -> str:
        """See ``Store``."""
        return "a folder, where whoever may write can replace and delete: only signatures and chain tell"

    def read(self, key: str) -> bytes | None:
        """See ``Store``."""
        with self._opened(key) as handle:
            return read_small(handle, self._show(key)) if handle else None

    def listing(self, prefix: str) -> Tree:
        """See ``Store``; MLflow's notes, which it leaves in the folders that it loads models from, are left out."""
        with plain_errors(self.root):
            tree = walk(self._place(prefix))
        for path in list(tree.sizes):
            if PurePosixPath(path).name == MLFLOW_NOTE:
                del tree.sizes[path]
        return tree

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
        with self._opened(key) as handle, target.open("wb") as copy:
            if handle is None:
                raise UserError(
                    f"{self._show(key)} is missing: publish the model again"
                )
            shutil.copyfileobj(handle, copy, 1 << 20)

    def _size(self, key: str) -> int | None:
        with self._opened(key) as handle:
            return os.fstat(handle.fileno()).st_size if handle else None

    def _measure(self, key: str) -> File | None:
        with self._opened(key) as handle:
            return measure(handle) if handle else None

    def _link_on_the_way(self, key: str) -> str | None:
        """Return the first symbolic link on the way to a key, relative to the store: it could lead anywhere."""
        parts = PurePosixPath(key).parts
        for count in range(1, len(parts) + 1):
            place = PurePosixPath(*parts[:count])
            if (self.root / place).is_symlink():
                return str(place)
        return None

    def _place(self, key: str) -> Path:
        """Return the path of a key.

        Raises:
            UserError: a link lies on the way, or the key is none.
        """
        fault = path_fault(key) if key else None
        if fault:
            raise UserError(f"{self.url}: {shown(key)} {fault}, and cannot lie there")
        link = self._link_on_the_way(key)
        if link:
            raise UserError(
                f"{self._show(link)} {LINK}, which is not followed: put what it leads to in its place"
            )
        return self.root / key

    @contextmanager
    def _opened(self, key: str) -> Iterator[BufferedReader | None]:
        """Open a regular file; None where there is nothing, or a folder.

        Raises:
            UserError: a link or a special file, which could lead anywhere or never end, or it cannot be read.
        """
        with plain_errors(self.root):
            path = self._place(key)
            if not path.exists() or path.is_dir():
                yield None
                return
            if not path.is_file():
                raise UserError(f"{self._show(key)} {SPECIAL}: remove it")
            # whatever was put in its place since then
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(opened, "rb") as handle:
                yield handle

    @contextmanager
    def _replacing(self, key: str) -> Iterator[BinaryIO]:
        """Open a temporary file that becomes ``key`` by rename, bytes on the disk first."""
        with self._incoming(key) as (part, handle):
            yield handle
            _to_disk(handle)
            os.replace(part, self._place(key))
            _folder_to_disk((self.root / key).parent)

    @contextmanager
    def _incoming(self, key: str) -> Iterator[tuple[Path, BinaryIO]]:
        """Open a temporary file on its way to ``key``, gone at the end.

        Temporary files lie beside the models, not among them: whoever lists a model's folder sees only its files.
        """
        incoming = self._place(".incoming")
        self._place(key).parent.mkdir(parents=True, exist_ok=True)
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
