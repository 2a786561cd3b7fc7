"""GGUF files, as llama.cpp serves them: by its header, what a file holds, and whether transformers can read it."""

import contextlib
import copy
import importlib.util
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elder.errors import UserError
from elder.model.removal import outline

MAGIC = b"GGUF"
NEEDED = ("gguf", "accelerate")  # transformers reads no GGUF file without both
# types that hold plain numbers, and what a checkpoint holds in their place
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# of keys, in transformers' list of architectures
NO_ARCHITECTURES = {"general", "tokenizer"}
TIED = "output.weight"  # some write it though the embedding stands for it


@dataclass(frozen=True)
class Header:
    """What the header of a GGUF file says.

    Attributes:
        path: of the file, absolute.
        types: {name of a number type: weights that are stored so}, the most common first.
        weights: {name of a tensor: how many weights it has}.
    """

    path: Path
    types: dict[str, int]
    weights: dict[str, int]

    @property
    def quantised(self) -> str | None:
        """Return the quantised types, the most common first; None where all weights are plain numbers."""
        return ", ".join(name for name in self.types if name not in PLAIN) or None

    @property
    def dtype(self) -> torch.dtype:
        """Return what a checkpoint of these weights holds: bfloat16, or that of most weights if none is quantised."""
        if self.quantised:
            return torch.bfloat16
        return PLAIN[next(iter(self.types))]


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file; no weight is read.

    Raises:
        UserError: if there is no such file, it is none, is cut short or split, or holds what transformers cannot read.
    """
    if not path.is_file():
        raise UserError(f"there is no GGUF file {str(path)!r}; give the path of one")
    return _read_header(path.absolute(), *_stamp(path))


def read_gguf_config(path: Path) -> Any:
    """Return the configuration that the header of a GGUF file stands for, with no word of quantisation.

    Raises:
        UserError: as `read_header`, or if the file has weights that this configuration has no place for.
        Exception: what transformers raises.
    """
    header = read_header(path)
    return copy.deepcopy(_read_config(header.path, *_stamp(path)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars off stderr, which no setting of its own switches off while it reads a GGUF file."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and time of change, which tell a file from a later one of its name."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache
def _read_header(path: Path, *_: int) -> Header:
    """Read a header, once for each state of the file: its vocabulary takes seconds."""
    name = str(path)
    for package in NEEDED:
        if not importlib.util.find_spec(package):
            raise UserError(
                f"{name!r} is a GGUF file, which needs the package {package}; install: pip install 'elder[gguf]'"
            )
    with path.open("rb") as handle:
        if handle.read(len(MAGIC)) != MAGIC:
            raise UserError(
                f"{name!r} is no GGUF file: it does not begin with the letters GGUF; fetch it again"
            )
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        fields = {
            key: field.contents()
            for key, field in reader.fields.items()
            if key.startswith(("general.", "split.")) or ".rope." in key
        }
    except Exception as error:  # numpy's and the reader's own, of many types
        raise UserError(
            f"the GGUF file {name!r} is cut short or damaged; fetch it again ({error})"
        ) from None
    for check in (_check_parts, _check_architecture, _check_types, _check_positions):
        check(name, fields, reader.tensors)
    types: Counter[str] = Counter()
    weights = {}
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] += int(tensor.n_elements)
        weights[tensor.name] = int(tensor.n_elements)
    return Header(path, dict(types.most_common()), weights)


def _check_parts(name: str, fields: dict[str, Any], _: list[Any]) -> None:
    parts = int(fields.get("split.count") or 0)
    if parts > 1:
        raise UserError(
            f"{name!r} is one of {parts} parts; join them with llama.cpp's llama-gguf-split --merge"
        )


def _check_architecture(name: str, fields: dict[str, Any], _: list[Any]) -> None:
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    told = str(fields.get("general.architecture"))
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS} - NO_ARCHITECTURES
    if _letters(told) not in {_letters(one) for one in known}:
        raise UserError(
            f"{name!r} holds a model of architecture {told!r}, and transformers reads GGUF files of"
            f" {', '.join(sorted(known))}; take the model's safetensors"
        )


def _letters(architecture: str) -> str:
    """Return what llama.cpp's and transformers' names share: qwen2moe and qwen2_moe, gpt-oss and gpt_oss."""
    return architecture.replace("_", "").replace("-", "")


def _check_types(name: str, _: dict[str, Any], tensors: list[Any]) -> None:
    """Refuse types of numbers that cannot be dequantised: an empty block of each is tried."""
    from gguf import GGML_QUANT_SIZES, dequantize

    for kind in sorted({tensor.tensor_type for tensor in tensors}):
        if kind.name in PLAIN:
            continue
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
        except NotImplementedError:
            raise UserError(
                f"{name!r} holds weights of type {kind.name}, which cannot be dequantised; take another file of this"
                " model, such as Q8_0, or its safetensors"
            ) from None


def _check_positions(name: str, fields: dict[str, Any], tensors: list[Any]) -> None:
    """Refuse scaled rotary positions: transformers leaves them out without a word, and the model is another one."""
    architecture = fields.get("general.architecture")
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    factors = [tensor.name for tensor in tensors if tensor.name.startswith("rope_")]
    if factors or (scaling != "none" and architecture != "gpt-oss"):
        told = factors[0] if factors else f"rope.scaling.type {scaling}"
        raise UserError(
            f"{name!r} scales its rotary positions ({told}), which transformers does not read from GGUF files;"
            " take the model's safetensors"
        )


@lru_cache
def _read_config(path: Path, *stamp: int) -> Any:
    """Read a configuration, once for each state of the file, and count its weights."""
    from transformers import AutoConfig

    with quiet():
        told = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    fields = told.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(key, None)
    header = _read_header(path, *stamp)
    config = type(told).from_dict(fields)
    config.dtype = header.dtype
    _check_count(header, config)
    return config


def _check_count(header: Header, config: Any) -> None:
    """Refuse a file with more or fewer weights than its configuration: transformers would leave out what it knows not.

    Raises:
        UserError: naming both numbers.
    """
    weights = dict(header.weights)
    if getattr(config, "tie_word_embeddings", False):
        weights.pop(TIED, None)
    here, places = (
        sum(weights.values()),
        sum(one.numel() for one in outline(config).parameters()),
    )
    if here != places:
        raise UserError(
            f"{str(header.path)!r} holds {here} weights, and the {config.model_type} that transformers makes of its"
            f" header has {places}: some would be lost or made up; take the model's safetensors"
        )
