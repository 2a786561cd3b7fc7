"""Where a run comes from: the code's commit, and who started it."""

import getpass
import os
import socket
import subprocess
from pathlib import Path
from typing import Any


def lineage(root: Path) -> dict[str, Any]:
    """Return commit, cleanliness of the tree and starter; None for what cannot be known here."""
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain")
    return {
        "git_commit": commit,
        "git_clean": None if status is None else status == "",
        "started_by": f"{_user()}@{socket.gethostname()}",
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return str(os.getuid())
