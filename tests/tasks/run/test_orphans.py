"""A server that was started for a run does not outlive it."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tasks.run.orphans import SERVER, TOKEN, servers_of
from tests.flows.waiting import wait_for

ROOT = Path(__file__).parents[3]
# Stands for a run, whose server is a process that sleeps.
RUN = """
import os, subprocess, sys
from tasks.run.orphans import TOKEN, end_server_with_this_process
end_server_with_this_process()
name, _, value = sys.argv[1].partition("=")
server = subprocess.Popen(["sleep", "600"], env=os.environ | {name: value})
print(os.environ[TOKEN], server.pid, flush=True)
sys.stdin.read()
"""


def alive(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_killed_run_leaves_no_server_behind() -> None:
    name, _, value = SERVER.partition("=")
    other_token = {name: value, TOKEN: uuid.uuid4().hex}
    with subprocess.Popen(["sleep", "600"], env=os.environ | other_token) as other:
        try:
            with subprocess.Popen(
                [sys.executable, "-c", RUN, SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                start_new_session=True,
            ) as run:
                token, server = run.stdout.readline().split()
                # a process that has just begun its program shows no environment yet
                wait_for(lambda: servers_of(token) == [int(server)], "the server", 20)
                os.kill(run.pid, signal.SIGKILL)
            wait_for(lambda: not alive(int(server)), "end of the server", 20)
            assert alive(other.pid)  # another run's
        finally:
            other.kill()
