"""A run that is killed leaves the Prefect server behind that it had started for itself: here is what ends it.

    python tasks/run/orphans.py TOKEN      waits for the end of stdin, then ends servers with this token

Whoever starts that holds its stdin open, which ends with him however he ends.
"""

import os
import signal
import sys
from pathlib import Path

TOKEN = "ELDER_RUN_TOKEN"  # in the environment of all that a run starts
SERVER = "PREFECT__SERVER_EPHEMERAL=1"  # in that of a server that Prefect started for one process
# Ctrl-C goes to all of a terminal
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_watchers: list[object] = []  # alive, and so their stdin open, as long as this process


def end_server_with_this_process() -> None:
    """See to it that the server which Prefect may start for this process does not outlive it, kill -9 included."""
    if _watchers or not Path("/proc/self/environ").exists():
        return
    import subprocess
    from uuid import uuid4

    token = os.environ[TOKEN] = uuid4().hex
    command = [sys.executable, "-I", "-S", __file__, token]
    watcher = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    _watchers.append(watcher)


def servers_of(token: str) -> list[int]:
    """Return the process ids of the servers with a token."""
    wanted = {SERVER.encode(), f"{TOKEN}={token}".encode()}
    servers = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = set(path.read_bytes().split(b"\0"))
        except OSError:  # another user's, or gone
            continue
        if wanted <= variables:
            servers.append(int(path.parent.name))
    return servers


def main() -> None:
    """Wait, then end what is left."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for server in servers_of(sys.argv[1]):
        os.kill(server, signal.SIGKILL)


if __name__ == "__main__":
    main()
