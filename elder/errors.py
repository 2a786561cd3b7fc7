"""The one exception for what a user can mend, and the hint that names the nearest valid word."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """The input is wrong: the message is one clear sentence that says what was given, what is allowed, what to do."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ``did you mean 'x'? `` for a close match, then the list of valid words, as the tail of a message."""
    valid = sorted(valid)
    close = get_close_matches(str(word), valid, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"
