"""Another try: which failures are worth one, and how long to wait for what does not answer."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from elder.errors import UserError
from elder.progress import say
from tasks.errors import Unreachable

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")
P = ParamSpec("P")
VARIABLE = "ELDER_PATIENCE"  # seconds
PATIENCE = (
    300.0  # seconds of waiting for what does not answer, where VARIABLE is not set
)
CHECKING = 10.0  # seconds of it before any work, when nothing is lost by giving up
LONGEST_WAIT = 30.0  # seconds between two tries
NEWS_EVERY = 5.0  # seconds between two lines of the same news

_inside: ContextVar[bool] = ContextVar("inside", default=False)
_most: ContextVar[float] = ContextVar("most", default=float("inf"))
_said: dict[str, float] = {}  # when which news was told


def patiently(call: Callable[[], T]) -> T:
    """Make a call, and make it again for as long as it ends with ``Unreachable`` and the patience lasts.

    The waits between the tries grow and are random, so that many who wait do not all come back at once; stderr says
    what is waited for. A call inside such a call is made once: the outer one begins again as a whole.

    Raises:
        Unreachable: nothing answered all the time.
    """
    if _inside.get():
        return call()
    from tenacity import Retrying, retry_if_exception_type, wait_random_exponential

    limit = min(_patience(), _most.get())
    tries = Retrying(
        retry=retry_if_exception_type(Unreachable),
        stop=lambda state: state.idle_for >= limit,
        wait=wait_random_exponential(multiplier=1, max=min(LONGEST_WAIT, limit)),
        before_sleep=_tell,
        reraise=True,
    )
    token = _inside.set(True)
    try:
        return tries(call)
    except Unreachable as error:
        if not limit:
            raise
        raise Unreachable(f"{error}; it was tried for {limit:.0f} seconds") from error
    finally:
        _inside.reset(token)


def without_waiting(call: Callable[[], T]) -> T:
    """Make a call once: in a thread, whose caller waits where nothing answers, and can be interrupted."""
    token = _inside.set(True)
    try:
        return call()
    finally:
        _inside.reset(token)


def patient(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function that may be called again, since it looks at what is there first, one that waits for an answer."""

    @wraps(function)
    def calling(*args: P.args, **kwargs: P.kwargs) -> T:
        return patiently(lambda: function(*args, **kwargs))

    return calling


@contextmanager
def little_patience() -> Iterator[None]:
    """Give up soon inside the block: what is wrong with an address is to be said before any work, and at once."""
    token = _most.set(CHECKING)
    try:
        yield
    finally:
        _most.reset(token)


def try_again(_: Any, __: Any, state: Any) -> bool:
    """Say whether a failed task is worth another try: not for what the user has to mend first.

    Nor for what did not answer: store and registry have been waited for already.
    """
    try:
        state.result()
    except UserError:
        return False
    except Exception:
        return True
    return False


def _patience() -> float:
    """Return the seconds that the environment names, or else the usual ones."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return PATIENCE
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise UserError(
            f"{VARIABLE} is {text!r}: name the seconds to wait for what does not answer, 0 to 86400"
        )
    return seconds


def _tell(state: "RetryCallState") -> None:
    """Say what is waited for; several threads that wait for the same thing say it once."""
    fault = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    now = time.monotonic()
    if now - _said.get(str(fault), -NEWS_EVERY) >= NEWS_EVERY:
        _said[str(fault)] = now
        say(f"{fault}; waiting, next try in {wait:.0f} s")
