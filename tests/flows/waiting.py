"""Waiting for what another process does, and a port for it."""

import socket
import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[[], Any], what: str, patience: float) -> Any:
    """Return the first true value of a condition, looked at twice a second for ``patience`` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} within {patience} s")


def wait_for_none(look: Callable[[], list[Any]], patience: float) -> list[Any]:
    """Return what is still seen after ``patience`` seconds: nothing, as soon as nothing is."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if not look():
            return []
        time.sleep(0.2)
    return look()


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
