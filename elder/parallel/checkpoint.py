"""Tensors that are divided among processes, in a folder that as many or as few others read their own parts from.

torch.distributed.checkpoint writes and reads them, each process its own parts, as safetensors: nothing is pickled.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor

from elder.errors import UserError
from elder.files import read_json, whole_folder, write_json
from elder.parallel.ranks import gather, is_first, told
from elder.record import Json

NOTES = "notes.json"
Notes = dict[str, Json]
FILES = "files"  # in the notes: {name of a file: its bytes}


def write_parts(folder: Path, tensors: Mapping[str, Tensor], notes: Notes) -> None:
    """Write tensors of all processes into a folder, which appears whole or not at all and takes an earlier one's place.

    Args:
        folder: of the checkpoint.
        tensors: divided ones, or what is the same in all processes.
        notes: what stands beside them, as JSON.
    """
    import torch.distributed.checkpoint as dcp

    with whole_folder(folder, replace=True) if is_first() else nullcontext() as made:
        place = told(made)
        assert place is not None
        writer = dcp.HuggingFaceStorageWriter(str(place), save_distributed=True)
        dcp.save(_with_places(tensors), storage_writer=writer)
        if is_first():
            sizes = {path.name: path.stat().st_size for path in place.iterdir()}
            write_json(place / NOTES, notes | {FILES: sizes})
    gather(None)


def read_notes(folder: Path) -> Notes | None:
    """Return what stands beside the tensors in a folder; None where it is absent or not whole."""
    try:
        notes = read_json(folder / NOTES)
        sizes = {name: (folder / name).stat().st_size for name in notes[FILES]}
    except (UserError, OSError, KeyError, TypeError):
        return None
    return notes if sizes == notes[FILES] else None


def read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read tensors from a folder, in place: each process its own parts.

    Args:
        folder: of a checkpoint whose notes can be read.
        tensors: all or some of those that were written, of the same shapes, divided as they are wanted.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    dcp.load(_with_places(tensors), storage_reader=reader)


def _with_places(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with at least one dimension, which share their memory: a part of none has no place."""
    return {
        name: value if value.ndim else value.view(1) for name, value in tensors.items()
    }
