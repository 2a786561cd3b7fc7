"""One process at a time: locks on files, which the kernel frees however their holder ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elder.errors import UserError

FOR_EVER = -1  # a patience that waits as long as it takes


class Busy(UserError):
    """Another process holds the lock."""


@contextmanager
def hold(path: Path, sentence: str, patience: float = 0) -> Iterator[None]:
    """Hold a lock until the end of the block, or of this process.

    The file stays: deleting it would let two processes lock two files of one name.

    Args:
        path: of the lock's file; its folder is made if it is absent.
        sentence: what is said where another process, or another block of this one, holds it.
        patience: seconds to wait for it; `FOR_EVER` for as long as it takes.

    Raises:
        Busy: with the sentence.
        UserError: if the file cannot be made.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=patience)
    except Timeout:
        raise Busy(sentence) from None
    except (OSError, NotImplementedError) as error:
        # the latter: no locks in this file system
        raise UserError(f"the lock {str(path)!r} cannot be taken: {error}") from None
    try:
        yield
    finally:
        lock.release()
