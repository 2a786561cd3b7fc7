"""Devices: which there are, and what counts as a want of memory; and that memory which is freed can be given back."""

import os
import subprocess
import sys

import pytest
import torch

from elder.device import device_of, is_out_of_memory, out_of_memory
from elder.errors import UserError
from elder.process import KEEP_MEMORY


def caught(size: int) -> RuntimeError:
    with pytest.raises(RuntimeError) as found:
        torch.empty(size)
    return found.value


def test_a_want_of_memory_is_known_on_every_device() -> None:
    assert is_out_of_memory(caught(10**15))  # of a CPU, where torch has no type for it
    assert is_out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    )
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublas")
    )
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))


def test_the_sentence_says_what_did_not_fit_how_much_was_asked_for_and_what_to_do() -> (
    None
):
    said = str(out_of_memory(caught(10**15), "the model"))
    assert said.startswith(
        "the model does not fit into memory (4000000000000000 bytes more were asked for); "
        "make it need less (--dtype bfloat16, a smaller batch"
    )
    gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"
    )
    assert "(2.50 GiB more were asked for)" in str(out_of_memory(gpu))
    assert str(out_of_memory(MemoryError())).startswith(
        "the work does not fit into memory; "
    )


def test_a_device_that_is_not_here() -> None:
    assert device_of("cpu").type == "cpu"
    with pytest.raises(
        UserError, match="device 'cdua' is not available here; give auto, cpu"
    ):
        device_of("cdua")


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
