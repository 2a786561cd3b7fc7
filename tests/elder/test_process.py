"""How a process uses memory: what it frees it gives back where memory is limited, and where it is told to."""

import os
import subprocess
import sys

from elder.process import KEEP_MEMORY

PROGRAM = """
import torch
from pathlib import Path
from elder.process import give_memory_back, trim_memory

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

before = held()
{first}
torch.ones(2**26)  # 256 MiB, and free again
{then}
print(held() - before)
"""


def kept(first: str = "", then: str = "") -> int:
    """Return the MiB that a process still holds of a tensor of 256."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(first=first, then=then)],
        env=os.environ | KEEP_MEMORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_what_is_freed_is_kept_until_a_process_is_to_give_it_back() -> None:
    assert kept() > 200
    assert kept(first="give_memory_back()") < 50
    assert kept(then="trim_memory()") < 50
