"""The exceptions that end in one sentence: for what a user can mend, and for a process that died."""

from collections.abc import Iterable
from difflib import get_close_matches

from elder.secrecy import hide_given_secrets

INSTALL = "pip install 'elder[pipeline]'"
NEED_LESS = (
    "make it need less (--dtype bfloat16, a smaller batch of the step: select, regularise, recover, evaluate and speed "
    "each have a key for it), or use a machine with more"
)

CRASHED = 3  # exit status, apart from a check's no (1) and a wrong input (2)
# of a process, in a sentence
KILLED = "was killed (SIGKILL), as the system does where memory runs out"


class _Told(Exception):
    """An exception that is told to people, in logs and by services, too: its message loses the secrets in it."""

    def __init__(self, *parts: object) -> None:
        told = [
            hide_given_secrets(one) if isinstance(one, str) else one for one in parts
        ]
        super().__init__(*told)


class UserError(_Told):
    """The input is wrong: the message is one clear sentence that says what was given, what is allowed, what to do."""


class Crash(_Told):
    """A process that does the work was killed or failed: the message is one clear sentence that says what to do."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return ``did you mean 'x'? `` for a close match, then the list of valid words, as the tail of a message."""
    valid = sorted(valid)
    close = get_close_matches(str(word), valid, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"
