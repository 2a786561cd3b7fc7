"""What the dense model makes of blocks, kept in a file: learning from a block then costs no pass through that model.

The file (.safetensors) is written a batch at a time and read a few blocks at a time, since the states of many blocks
are large: ``ids`` (blocks, seq_len), and ``states``, what enters the dense model's head, (blocks, seq_len, hidden).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from elder.errors import UserError
from elder.files import whole_file
from elder.model.head import states_of
from elder.training.micro_batch import MicroBatch
from elder.training.synthesis import Writing, read_ids, written_blocks

LOOKED_AT = 8  # blocks of calibration at once
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class KnownStates:
    """The states that are kept.

    Attributes:
        path: of the file.
        ids: of all blocks in it, (blocks, seq_len) int64.
    """

    path: Path
    ids: Tensor

    @cached_property
    def places(self) -> dict[bytes, int]:
        """Return {token ids of a block: its place in the file}."""
        return {_key(row): place for place, row in enumerate(self.ids)}

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the states of blocks that are there, (batch, seq_len, hidden) on the CPU."""
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            states = file.get_slice("states")
            return torch.stack([states[self.places[_key(row)]] for row in ids])


def known_states(
    dense: Any, blocks: Tensor, wanted: Writing, path: Path
) -> KnownStates:
    """Let the dense model write blocks, and keep what it makes of them and of the calibration blocks.

    Args:
        dense: the dense model, in eval mode.
        blocks: calibration blocks, (samples, seq_len) int64.
        wanted: how many it writes, and how; they come before the calibration blocks.
        path: of the file; one that is whole is taken as it is.

    Raises:
        UserError: if the disk has no room for it.
    """
    count = wanted.count + len(blocks)
    ids = read_ids(path, ("ids", "states"))
    if ids is None or ids.shape != (count, blocks.shape[1]):
        with whole_file(path) as new, new.open("wb") as handle:
            file = StatesFile(handle, path, count)
            ids = blocks
            if wanted.count:
                written = written_blocks(dense, blocks, wanted, file.add)
                ids = torch.cat([written, blocks])
            work, seq_len = "looking at calibration text", blocks.shape[1]
            at_once = MicroBatch.of_blocks(work, LOOKED_AT, seq_len)
            for some in blocks.split(at_once.size):
                file.add(at_once.attempt(partial(_look, dense, some)))
            file.end(ids)
    return KnownStates(path, ids)


@torch.no_grad()
def _look(dense: Any, blocks: Tensor, at_once: int) -> Tensor:
    """Return the states of blocks, (blocks, seq_len, hidden) on the CPU."""
    return torch.cat([states_of(dense, some).cpu() for some in blocks.split(at_once)])


class StatesFile:
    """Writes such a file.

    Args:
        handle: of the file, open for writing.
        path: that it will have.
        count: blocks that will be written.
    """

    def __init__(self, handle: BinaryIO, path: Path, count: int) -> None:
        self.handle, self.path, self.count = handle, path, count
        self.begun = False

    def add(self, states: Tensor) -> None:
        """Write the states of the next blocks, (n, seq_len, hidden)."""
        if not self.begun:
            self._begin(states)
        raw = states.cpu().contiguous().view(torch.uint8)
        self.handle.write(raw.numpy().data)

    def end(self, ids: Tensor) -> None:
        """Write the token ids of all blocks, (count, seq_len), in the order of their states."""
        self.handle.write(ids.contiguous().numpy().data)

    def _begin(self, states: Tensor) -> None:
        """Write what comes before the tensors: where each lies."""
        self.begun = True
        shape = [self.count, *states.shape[1:]]
        refuse_full_disk(self.path.parent, shape, states.element_size())
        split = prod(shape) * states.element_size()
        whole = split + prod(shape[:2]) * torch.int64.itemsize
        named = {
            "states": {"dtype": NAMES[states.dtype], "shape": shape},
            "ids": {"dtype": "I64", "shape": shape[:2]},
        }
        named["states"]["data_offsets"] = [0, split]
        named["ids"]["data_offsets"] = [split, whole]
        head = json.dumps(named).encode()
        head += b" " * (-len(head) % 8)  # tensors begin at a multiple of 8 bytes
        self.handle.write(len(head).to_bytes(8, "little") + head)


def refuse_full_disk(folder: Path, shape: Sequence[int], itemsize: int) -> None:
    """Refuse to keep states that a disk has no room for.

    Args:
        folder: where they would lie.
        shape: of the states, (blocks, seq_len, hidden).
        itemsize: bytes of each number.

    Raises:
        UserError: with what they take, and what is left.
    """
    takes = prod(shape) * itemsize + prod(shape[:2]) * torch.int64.itemsize
    free = shutil.disk_usage(folder).free
    if takes > free:
        raise UserError(
            f"what the dense model makes of {shape[0]} blocks takes {takes / 1e9:.1f} GB, and {str(folder)!r} "
            f"has {free / 1e9:.1f} GB left: make room, or set recover.distil.states to anew"
        )


def _key(row: Tensor) -> bytes:
    return row.cpu().numpy().tobytes()
