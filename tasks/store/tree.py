"""What lies in a folder: regular files by their names, and what a stored model has none of, links and special files."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LINK = "is a symbolic link"
SPECIAL = "is no regular file"


@dataclass(frozen=True)
class Tree:
    """What lies below a folder or a prefix, by path relative to it.

    Attributes:
        sizes: bytes of each regular file.
        odd: what is none, and what it is instead.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)


def walk(folder: Path) -> Tree:
    """Return what lies below a folder; no link is followed, nothing is opened, and an absent folder has nothing.

    Raises:
        OSError: a folder cannot be read.
    """
    tree = Tree()
    for entry in _entries(folder):
        name = Path(entry.path).relative_to(folder).as_posix()
        kind = entry.stat(follow_symlinks=False)
        if stat.S_ISREG(kind.st_mode):
            tree.sizes[name] = kind.st_size
        else:
            tree.odd[name] = LINK if entry.is_symlink() else SPECIAL
    return tree


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield all that is no folder, at any depth."""
    waiting = [str(folder)] if folder.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry
