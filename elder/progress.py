"""Progress on stderr: a bar with the time left on a terminal, a line every few seconds elsewhere."""

import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from elder.secrecy import hide_given_secrets

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
LINE_EVERY = 10.0  # seconds between lines where there is no terminal
# Unicode's control characters, and its separators of lines and paragraphs
LINE_ENDS = {"Cc", "Zl", "Zp"}
# they show text in another order
REORDERING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# names hold what rich takes for an emoji: "models:x:" would be shown as "models" and a red cross
console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(message: str) -> None:
    """Print one line of news on stderr, without secrets; it stays one line, whatever is named in it."""
    console.print(one_line(hide_given_secrets(message)), markup=False)


def one_line(text: str) -> str:
    """Return a text with every character escaped that would begin a new line or hide what stands there.

    Names come from a registry or a store that others write to: a line break in one must not look like a line of ours.
    """
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) in LINE_ENDS or character in REORDERING:
        return character.encode("unicode_escape").decode("ascii")
    return character


class Meter:
    """Counts the steps of one job; call it once a step."""

    def __init__(self, label: str, total: int, bar: "Progress | None") -> None:
        self.label, self.total, self.bar = label, total, bar
        self.done = 0
        self.started = self.last_line = time.monotonic()
        self.task = bar.add_task(label, total=total) if bar else None

    def __call__(self, note: str = "", steps: int = 1) -> None:
        """Count steps, and show what is left."""
        self.done += steps
        if self.bar and self.task is not None:
            self.bar.update(
                self.task, advance=steps, description=f"{self.label} {note}".strip()
            )
            return
        now = time.monotonic()
        if now - self.last_line >= LINE_EVERY:
            self.last_line = now
            seconds_a_step = (now - self.started) / self.done
            left = seconds_a_step * (self.total - self.done)
            tail = f", {note}" if note else ""
            say(f"{self.label} {self.done}/{self.total}, about {left:.0f} s left{tail}")


@contextmanager
def meter(label: str, total: int) -> Iterator[Meter]:
    """Show the progress of a job of ``total`` steps."""
    if not console.is_terminal:
        yield Meter(label, total, None)
        return
    from rich.progress import (  # here, since a command that shows no bar needs none of it
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Meter(label, total, bar)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield items, and count each one done when the next is asked for."""
    with meter(label, total) as step:
        for item in items:
            yield item
            step()
