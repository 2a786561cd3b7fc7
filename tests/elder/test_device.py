"""Devices: which there are, and what counts as a want of memory."""

import pytest
import torch

from elder.device import device_of, is_out_of_memory, out_of_memory
from elder.errors import UserError


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
