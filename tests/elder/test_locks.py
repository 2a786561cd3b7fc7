"""Locks: one holder at a time, and none that outlives its process."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elder.errors import UserError
from elder.locks import Busy, hold

HOLD = """
import sys
from pathlib import Path
from elder.locks import hold

with hold(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "locks" / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_what_another_process_holds_is_refused_until_that_process_dies(
    tmp_path: Path, holder: subprocess.Popen
) -> None:
    path = tmp_path / "locks" / "a"
    with (
        pytest.raises(Busy, match="^someone is at it$"),
        hold(path, "someone is at it"),
    ):
        pass
    started = time.monotonic()
    with pytest.raises(Busy), hold(path, "still at it", patience=0.3):
        pass
    assert time.monotonic() - started >= 0.3
    holder.kill()
    with hold(path, "still at it", patience=20):
        pass


def test_two_blocks_of_one_process_exclude_each_other_and_a_failure_frees_the_lock(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    with hold(path, "busy"), pytest.raises(Busy), hold(path, "busy"):
        pass
    with pytest.raises(ZeroDivisionError), hold(path, "busy"):
        1 / 0  # noqa: B018
    with hold(path, "busy"):
        pass


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="the lock .* cannot be taken: "),
        hold(tmp_path / "file" / "a", "busy"),
    ):
        pass
