"""What a process does to the world around it, counted: at the n-th it can be killed, or told that the disk is full.

Effects are files opened to be written, renamed, linked or removed, folders made and removed, syncs, statements that
change a database, commits, and requests that change a store. Reading is none: to die before a read is to die after the
effect before it.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = {
    "os.rename": "rename",
    "os.link": "link",
    "os.remove": "remove",
    "os.mkdir": "mkdir",
    "os.rmdir": "rmdir",
}
TAKE_SPACE = {"open", "mkdir", "sync", "rename", "link"}
READING = ("SELECT", "PRAGMA", "SHOW", "BEGIN", "ROLLBACK")
ASKING = ("Get", "Head", "List")
OnEffect = Callable[[str, str], None]


def watch(below: Path, on_effect: OnEffect) -> None:
    """Call a function before every effect of this process; there is no way back.

    Args:
        below: files elsewhere do not count.
        on_effect: takes the kind of the effect, and on what.
    """
    _watch_files(str(below), on_effect)
    _watch_databases(on_effect)
    _watch_stores(on_effect)


def listed(below: Path, into: Path) -> None:
    """Write down all effects of this process, one in a line."""
    handle = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(kind: str, what: str) -> None:
        os.write(handle, f"{kind} {what}\n".replace("\n", " ").encode() + b"\n")

    watch(below, write)


def killed_at(below: Path, number: int) -> None:
    """Have this process die before its effect of this number, counted from 0."""
    seen = [0]

    def count(_: str, __: str) -> None:
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1

    watch(below, count)


def disk_full_at(below: Path, number: int) -> None:
    """Have the disk be full, for this process, from its effect of this number on."""
    seen = [0]

    def count(kind: str, what: str) -> None:
        seen[0] += 1
        if seen[0] > number and kind in TAKE_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what)

    watch(below, count)


def statement_at(number: int, do: Callable[[], None]) -> None:
    """Do something before the statement of this number, counted from 0, that this process gives a database."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    seen = [0]

    def count(*_: Any) -> None:
        if seen[0] == number:
            do()
        seen[0] += 1

    event.listen(Engine, "before_cursor_execute", count)


def _watch_files(below: str, on_effect: OnEffect) -> None:
    inside = [False]  # what the function does itself is no effect

    def tell(kind: str, what: Any) -> None:
        path = os.path.abspath(os.fsdecode(what))
        if inside[0] or not path.startswith(below):
            return
        inside[0] = True
        try:
            on_effect(kind, path.removeprefix(below).lstrip("/"))
        finally:
            inside[0] = False

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILES:
            tell(FILES[event], arguments[0])
        elif event == "open" and _is_written(*arguments):
            tell("open", arguments[0])

    def sync(descriptor: int) -> None:
        tell("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
        really_sync(descriptor)

    really_sync, os.fsync = os.fsync, sync
    sys.addaudithook(audit)


def _is_written(path: Any, mode: Any, flags: Any) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    return bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _watch_databases(on_effect: OnEffect) -> None:
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def statement(_: Any, __: Any, text: str, *___: Any) -> None:
        words = text.split()
        if words[0].upper() not in READING:
            on_effect("sql", " ".join(words[:3]))

    def commit(_: Any) -> None:
        on_effect("commit", "")

    event.listen(Engine, "before_cursor_execute", statement)
    event.listen(Engine, "commit", commit)


def _watch_stores(on_effect: OnEffect) -> None:
    from botocore.client import BaseClient

    really_call = BaseClient._make_api_call

    def call(client: Any, name: str, arguments: dict[str, Any]) -> Any:
        if not name.startswith(ASKING):
            on_effect("s3", f"{name} {arguments.get('Key', '')}")
        return really_call(client, name, arguments)

    BaseClient._make_api_call = call
