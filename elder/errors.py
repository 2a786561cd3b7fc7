"""The exceptions that end in one sentence: for what a user can mend, and for a process that died."""

from collections.abc import Iterable
from difflib import get_close_matches

NEED_LESS = (
    "make it need less (--dtype bfloat16, a smaller batch of the step: select, regularise, recover, evaluate and speed "
    "each have a key for it), or use a machine with more"
)


class UserError(Exception):
    """The input is wrong: the message is one clear sentence that says what was given, what is allowed, what to do."""


class Crash(Exception):
    """A process that does the work was killed or failed: the message is one clear sentence that says what to do."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ``did you mean 'x'? `` for a close match, then the list of valid words, as the tail of a message."""
    valid = sorted(valid)
    close = get_close_matches(str(word), valid, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"
