"""One run at a time in a project: whoever comes later, by hand or on schedule, waits and is told for whom.

On a Ray cluster several are at work at once: Ray says who has which cores and GPUs.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from elder.files import write_json
from elder.locks import FOR_EVER, Busy, hold
from elder.progress import say
from tasks.run.marks import read_mark

# below runs/; earlier versions take turns by these, too
LOCK, HOLDER = (".turn", ".turn.json")


@contextmanager
def exclusive(root: Path) -> Iterator[Callable[[str], None]]:
    """Be the only run at work in a project, waiting as long as it takes; not so where Ray placed this process.

    It is free again when this process ends.

    Args:
        root: the project's folder.

    Yields:
        A function that takes the id of the run at work, which those who wait are told.
    """
    if on_ray():
        yield lambda run_id: None
        return
    runs = root / "runs"
    with ExitStack() as held:
        try:
            held.enter_context(hold(runs / LOCK, ""))
        except Busy:
            say(
                f"{_holder(runs)} is at work in this project; this one starts when it has ended, Ctrl-C gives up"
            )
            held.enter_context(hold(runs / LOCK, "", patience=FOR_EVER))
        _write_holder(runs, None)
        yield lambda run_id: _write_holder(runs, run_id)


def on_ray() -> bool:
    """Say whether Ray placed this process, on cores and GPUs that are its own for the while."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _write_holder(runs: Path, run_id: str | None) -> None:
    """Write who is at work."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(runs / HOLDER, {"run_id": run_id, "pid": os.getpid(), "since": since})


def _holder(runs: Path) -> str:
    """Name whoever is at work."""
    holder = read_mark(runs / HOLDER)
    if holder is None:  # it has only just started
        return "another run"
    run = f"run {holder['run_id']}" if holder["run_id"] else "another run"
    return f"{run} (process {holder['pid']}, since {holder['since']})"
