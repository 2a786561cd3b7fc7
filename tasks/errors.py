"""Failures in plain sentences: what the system refuses, services that do not answer."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elder.errors import UserError


class Unreachable(UserError):
    """Something on the network did not answer: it may do so in a moment, so another try is worth it."""


@contextmanager
def plain_errors(place: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a UserError of one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full: free some space and run again"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = (
                "access denied: make it readable and writable, or name another folder"
            )
        elif error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            reason = "a file stands where a folder is needed, or the reverse: name another folder"
        else:
            reason = error.strerror or type(error).__name__
        raise UserError(f"{error.filename or place}: {reason}") from error
