"""One run at a time in a project: whoever comes later, by hand or on schedule, waits and is told for whom."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from elder.files import write_json
from elder.progress import say
from tasks.errors import plain_errors

LOCK, HOLDER = ".turn", ".turn.json"  # below runs/
LOOK_EVERY = 1.0  # seconds between looks at whether the turn is free


@contextmanager
def turn(root: Path) -> Iterator[Callable[[str], None]]:
    """Hold the project's turn, waiting for it as long as it takes. It is free again when its holder's process ends.

    Args:
        root: the project's folder.

    Yields:
        A function that takes the id of the run that the turn is for, which those who wait are told.
    """
    runs = root / "runs"

    def tell(run_id: str | None) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(runs / HOLDER, {"run_id": run_id, "pid": os.getpid(), "since": since})

    with plain_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
        lock = FileLock(runs / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(
                f"{_holder(runs)} is at work in this project; this one starts when it has ended, Ctrl-C gives up"
            )
            lock.acquire(poll_interval=LOOK_EVERY)
        tell(None)
    try:
        yield tell
    finally:
        lock.release()


def _holder(runs: Path) -> str:
    """Name whoever holds the turn."""
    try:
        found = json.loads((runs / HOLDER).read_text(encoding="utf-8"))
    except FileNotFoundError:  # it has only just started
        return "another run"
    run = f"run {found['run_id']}" if found["run_id"] else "another run"
    return f"{run} (process {found['pid']}, since {found['since']})"
