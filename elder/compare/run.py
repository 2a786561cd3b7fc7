"""Measure the rows of a comparison: each is compressed, evaluated, written down and deleted, in a process of its own.

A folder holds the work:

    rows/NAME.json         what was measured; its presence is the mark of completion
    rows/NAME.npz          the loss of each evaluation block, for paired tests
    shared/DIGEST.*        layers that were chosen and text that the dense model wrote, for rows that need the same
    work/NAME/             stages of a row that is under way; gone when it is measured
    lock                   held by the command that is at work here; the kernel frees it however that ends

NAME ends in a digest of all that the numbers depend on, so that a change of parameters, model, texts or version is
measured anew, what was measured before is found again, and two rows that mean the same are measured once.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import (
    active_children,
    get_context,
    parent_process,
    resource_tracker,
)
from pathlib import Path

from elder.compare.measure import measure
from elder.compare.plan import DENSE, Measurement
from elder.compare.result import read_result, value_of
from elder.device import is_out_of_memory, out_of_memory
from elder.errors import UserError
from elder.locks import hold
from elder.progress import say
from elder.record import DOMAINS

FOLDERS = ("rows", "work", "shared")
LOCK = "lock"
KILLED = "the process that measured it was killed; was there enough memory?"
# called with a measurement and why it could not be made, None where it was
Told = Callable[[Measurement, str | None], object]
# makes measurements in the folder of a comparison, and tells of each
Measuring = Callable[[Sequence[Measurement], Path, Told], None]


@dataclass(frozen=True)
class Failure:
    """A row that could not be measured, and why."""

    measurement: Measurement
    reason: str


def run_all(
    measurements: list[Measurement],
    folder: Path,
    after: Callable[[], object],
    measuring: Measuring,
) -> list[Failure]:
    """Measure what is not measured yet.

    Args:
        measurements: from `elder.compare.plan.plan`; the first is the dense model.
        folder: of the comparison.
        after: called whenever something new was measured.
        measuring: makes the measurements: `one_by_one`, or on other machines.

    Returns:
        Those that could not be measured; the others are not held up by them.

    Raises:
        UserError: if the dense model cannot be measured, or another command is at work in the folder.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    wanted: dict[str, Measurement] = {}
    for one in measurements:  # rows that mean the same have one result
        wanted.setdefault(one.slug, one)
    waiting = [one for one in wanted.values() if not one.path(folder).exists()]
    failures: list[Failure] = []
    done = len(wanted) - len(waiting)

    def told(one: Measurement, reason: str | None) -> None:
        nonlocal done
        if reason is not None:
            failures.append(_failure(one, reason))
            return
        done += 1
        say(f"{done}/{len(wanted)} {one.title}: {_news(one, folder)}")
        after()

    refusal = (
        f"another comparison is at work in {str(folder)!r}: wait for its end, or name another output; to measure "
        "several rows at once, set launch.ray"
    )
    with hold(folder / LOCK, refusal):
        measuring(waiting, folder, told)
    return failures


def one_by_one(measurements: Sequence[Measurement], folder: Path, told: Told) -> None:
    """Measure here, each in a new process, so that its peak memory is its own."""
    for one in measurements:
        told(one, _in_own_process(one, folder))


def _failure(one: Measurement, reason: str) -> Failure:
    """Say what could not be measured; without the dense model there is no table."""
    if one.row == DENSE:
        raise UserError(reason)
    say(f"{one.title}: {reason}")
    return Failure(one, reason)


def failures_by_name(failures: list[Failure]) -> dict[str, str]:
    """Return {name: reason}; the name says size and text only where a row failed at several of them."""
    titles = [failure.measurement.title for failure in failures]
    named: dict[str, str] = {}
    for failure in failures:
        one = failure.measurement
        name = one.title if titles.count(one.title) == 1 else one.full_title
        named[name] = failure.reason
    return named


def _news(one: Measurement, folder: Path) -> str:
    measured = read_result(one, folder).perplexity
    shown = [
        f"{value_of(measured[domain]):.2f} {name}" for domain, name in DOMAINS.items()
    ]
    return ", ".join(shown)


def attempt(one: Measurement, folder: Path) -> str | None:
    """Measure in this process; returns None, or why it could not be measured."""
    try:
        measure(one, folder)
    except UserError as error:
        return str(error)
    except Exception as error:
        # one broken row must not cost the hours of the others
        if is_out_of_memory(error):
            return str(out_of_memory(error, f"the row {one.row}"))
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _in_own_process(one: Measurement, folder: Path) -> str | None:
    """Do as `attempt`, in a new process."""
    pool = ProcessPoolExecutor(
        max_workers=1,
        mp_context=get_context("spawn"),
        initializer=_follow_parent,
        max_tasks_per_child=1,
    )
    with pool:
        try:
            with _uninterrupted():
                measured = pool.submit(attempt, one, folder)
            return measured.result()
        except BrokenProcessPool:
            return KILLED
        except BaseException:
            # an interruption, which must not wait for the end of the measurement
            for child in active_children():
                child.terminate()
            raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait while a process is started, here and there: whichever it cut off would end in a traceback."""
    resource_tracker.ensure_running()  # starting it would let Ctrl-C through again
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new one inherits it
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def _follow_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and end as soon as it has.

    What is written is written by rename, so nothing is left half-written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
