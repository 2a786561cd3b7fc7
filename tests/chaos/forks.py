"""Work in a forked child: it shares what its parent has imported, may be killed, and leaves nothing behind."""

import contextlib
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PATIENCE = 240.0  # seconds that a child may take on a busy machine
sleep, now = time.sleep, time.monotonic  # as they are, whatever a child makes of them
BROKEN = 70  # exit status of a child that raised what no command catches


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        status: exit status; negative: killed by that signal; None: it had to be ended, since it never would.
        said: what it wrote to stdout and stderr.
        seconds: that it took.
    """

    status: int | None
    said: str
    seconds: float


def run(work: Callable[[], Any], output: Path, kill_after: float = 0.0) -> Ending:
    """Run in a child and wait for it; whatever it started ends with it.

    Args:
        work: what to do.
        output: file that takes what the child writes.
        kill_after: seconds until it is killed; 0: never.
    """
    start = now()
    child = begin(work, output)
    return end(child, output, start, kill_after)


def begin(work: Callable[[], Any], output: Path) -> int:
    """Start a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    _be_the_child(work, output)
    raise AssertionError("unreachable")


def end(child: int, output: Path, start: float, kill_after: float = 0.0) -> Ending:
    """Wait for a child."""
    status = _wait(child, start, kill_after)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    said = output.read_text(encoding="utf-8", errors="replace")
    return Ending(status, said, now() - start)


def ask(work: Callable[[], T], place: Path) -> T:
    """Return what a function returns in a child.

    Raises:
        RuntimeError: if it raised something.
    """
    answer, output = place / "answer", place / "asked"
    answer.unlink(missing_ok=True)

    def write() -> None:
        answer.write_bytes(pickle.dumps(work()))

    ending = run(write, output)
    if ending.status != 0:
        raise RuntimeError(f"a child ended with {ending.status}:\n{ending.said}")
    return pickle.loads(answer.read_bytes())


def _be_the_child(work: Callable[[], Any], output: Path) -> None:
    status = BROKEN
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, opened in ((0, nothing), (1, written), (2, written)):
            os.dup2(opened, number)
        work()
        status = 0
    except SystemExit as ended:
        code = ended.code
        status = code if isinstance(code, int) else int(code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _wait(child: int, start: float, kill_after: float) -> int | None:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        passed = now() - start
        if kill_after and passed > kill_after:
            os.killpg(child, signal.SIGKILL)
            kill_after = 0.0
        if passed > PATIENCE:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        sleep(0.005)
