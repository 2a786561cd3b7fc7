"""A small disk in memory, which can be filled up to its last page; where it cannot be mounted, an ordinary folder."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SIZE = 256  # MB
PAGE = 4096  # bytes, the least that a file takes there


@dataclass
class Disk:
    """A folder, and whether it is a disk of its own."""

    folder: Path
    own: bool = False

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def mount(self) -> None:
        """Make it a disk of its own, where that is allowed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = f"size={SIZE}m,mode=755"
        command = ["mount", "-t", "tmpfs", "-o", options, "elder-chaos", self.folder]
        if os.geteuid() == 0:
            done = subprocess.run(command, capture_output=True, check=False)
            self.own = done.returncode == 0

    def unmount(self) -> None:
        """Give the memory back; the folder is an ordinary one then, and empty."""
        if self.own:
            subprocess.run(["umount", "-l", self.folder], check=False)
            self.own = False

    def free(self) -> int:
        """Return the bytes that are free."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int) -> None:
        """Fill it, but for some bytes."""
        with self._ballast.open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, self.free() - leave)

    def make_room(self) -> None:
        """Take away what it was filled with."""
        self._ballast.unlink(missing_ok=True)
