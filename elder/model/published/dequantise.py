"""From a GGUF file to a stock checkpoint of plain numbers, made once and kept in ``build/models``."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from elder.errors import UserError
from elder.files import file_digest, read_json, whole_folder, write_json
from elder.locks import FOR_EVER, hold
from elder.model.check import check_gguf
from elder.model.published.gguf import Header, quiet, read_gguf_config, read_header
from elder.model.save import write_checkpoint
from elder.progress import say

PLACE = Path("build/models")  # where models lie that were brought here
ORIGIN = "gguf.json"  # in such a checkpoint: what it was made from


@dataclass(frozen=True)
class Dequantised:
    """A checkpoint that was made from a GGUF file.

    Attributes:
        folder: where it lies.
        file_sha256: of the GGUF file.
        types: the quantised types of its weights, such as ``Q4_1``; None if they were plain numbers.
    """

    folder: Path
    file_sha256: str
    types: str | None


def dequantised(path: Path) -> Dequantised:
    """Return the checkpoint of a GGUF file; one that is not here is made, in bfloat16 where weights were quantised.

    It is kept under the digest of the file and the version of transformers, which takes minutes for a vocabulary of
    49,152 on a busy machine.

    Raises:
        UserError: as `elder.model.check.check_gguf`, or if the checkpoint cannot be written.
        Exception: what transformers raises.
    """
    if not path.is_file():
        check_gguf(path)  # says so
    sha256 = file_digest(path)
    name = f"gguf-{sha256[:16]}-transformers-{version('transformers')}"
    folder = PLACE / name
    with hold(PLACE / f"{name}.lock", f"{str(path)!r} is being read", FOR_EVER):
        if not folder.is_dir():
            _make(path, folder)
    types = read_json(folder / ORIGIN)["quantised"]
    return Dequantised(folder, sha256, types)


def _make(path: Path, folder: Path) -> None:
    """Write the checkpoint, and beside it what it was made from."""
    check_gguf(path)
    header = read_header(path)
    dtype = str(header.dtype).removeprefix("torch.")
    what = f"dequantised from {header.quantised}" if header.quantised else "as it is"
    say(f"reading {path.name}, {what}, into {str(folder)!r} in {dtype}, once")
    # weights of a new model are drawn at random first: what is drawn afterwards must not depend on that
    with torch.random.fork_rng(devices=[]), quiet():
        model, tokenizer = _read(header)
    with whole_folder(folder) as partial:
        write_checkpoint(model, tokenizer, partial)
        write_json(partial / ORIGIN, {"quantised": header.quantised})


def _read(header: Header) -> tuple[Any, Any]:
    """Return a new model with the weights of a file, which counts as quantised no more, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place, file = header.path.parent, {"gguf_file": header.path.name}
    tokenizer = AutoTokenizer.from_pretrained(place, **file)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        place,
        config=read_gguf_config(header.path),
        dtype=header.dtype,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        **file,
    )
    quantised, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"{str(header.path)!r} lacks {len(missing)} tensors, such as {missing[0]}; take the model's safetensors"
        )
    config = read_gguf_config(header.path)
    model = AutoModelForCausalLM.from_config(config, dtype=header.dtype)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    return model, tokenizer
