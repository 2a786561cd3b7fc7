"""Quantised checkpoints: what can be dequantised is, at loading, to bfloat16; all else is refused before any work.

transformers dequantises such formats, too, but divides the rows of a matrix evenly among its scales, where the last
block may be a short one, and it quantises again when it saves. So the weights are turned into plain numbers here, and
the model is built of them as if they had been stored so.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from elder.errors import UserError
from elder.model.shards import weight_files
from elder.progress import say

MXFP4 = "mxfp4"
DEQUANTISED = ("fp8", "mxfp8", MXFP4)
BLOCK = [128, 128]  # rows and columns of an fp8 block where a configuration gives none
# where a configuration says how its weights are quantised; MLX writes the second one
FIELDS = ("quantization_config", "quantization", "compression_config")
CODES = (torch.float8_e4m3fn, torch.float8_e5m2)
BLOCKS = "_blocks"  # how the names of MXFP4's codes end
PLAIN = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# how the scales of a weight are called in fp8 checkpoints: beside ``weight``, which they multiply
SCALES = ("weight_scale_inv", "weight_scale", "scale")
# scales of what enters a layer, or of its cache: those of engines that compute in 8 bits
OF_ACTIVATIONS = ("activation_scale", "input_scale", "k_scale", "v_scale", "q_scale")
SHORT_TYPES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "U8", "I8", "I16", "I32", "U32")
INSTEAD = (
    "take the checkpoint that it was made from, which its card mostly names as base_model, or dequantise it with the "
    "tool that quantised it and save it without a quantization_config"
)


def quantisation_of(fields: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a config.json, or the text configuration in it, says of quantisation; None: nothing."""
    for name in FIELDS:
        told = fields.get(name)
        if isinstance(told, Mapping) and told:
            return told
    nested = fields.get("text_config")
    return quantisation_of(nested) if isinstance(nested, Mapping) else None


def format_of(quantisation: Mapping[str, Any]) -> str:
    """Return the name of a quantisation, such as fp8 or gptq."""
    if quantisation.get("load_in_4bit") or quantisation.get("load_in_8bit"):
        return "bitsandbytes"
    return str(quantisation.get("quant_method") or "a method without a name")


def refuse_quantised(source: str, fields: Mapping[str, Any]) -> None:
    """Refuse a model whose weights cannot be dequantised.

    Args:
        source: its name.
        fields: of its config.json.

    Raises:
        UserError: naming its quantisation, and what to take instead.
    """
    quantisation = quantisation_of(fields)
    if quantisation is None:
        return
    name = format_of(quantisation)
    if name not in DEQUANTISED:
        raise UserError(
            f"{source!r} is quantised with {name}, whose codes cannot be turned back into weights here; {INSTEAD}"
        )


def has_codes(types: Mapping[str, str]) -> bool:
    """Say whether tensors may be codes, by {name: type}; a configuration that speaks of some may be left over."""
    return any(kind in SHORT_TYPES for kind in types.values())


def take_quantisation(config: Any) -> Mapping[str, Any] | None:
    """Take out of a configuration what it says of quantisation, and return that."""
    taken = None
    for part in (config, config.get_text_config(decoder=True)):
        for name in FIELDS:
            told = vars(part).pop(name, None)
            taken = taken or told
    return taken


def true_quantisation(
    source: str, config: Any, revision: str
) -> Mapping[str, Any] | None:
    """Take out of a configuration what it says of quantisation; return that, None where the weights are plain.

    Args:
        source: a folder or a Hub id; what is not in its cache is downloaded where something is said.
        config: of the model.
        revision: of a Hub id.
    """
    told = take_quantisation(config)
    if told is None or has_codes(tensor_types(weight_files(source, revision))):
        return told
    say(
        f"{source!r} says in config.json that it is quantised with {format_of(told)}, and its weights are plain: they "
        "are used as they are"
    )
    return None


def refuse_codes(source: str, types: Mapping[str, str]) -> None:
    """Refuse codes that the configuration says nothing of: loading would take them for the weights themselves.

    Args:
        source: the model's name.
        types: {name of a tensor: its type in the headers of the files}.

    Raises:
        UserError: naming one of them.
    """
    owners = {name.rpartition(".")[0] for name in types if "scale" in name}
    for name, kind in types.items():
        packed = name.endswith(("weight", "_blocks", "_packed"))
        if kind in SHORT_TYPES and packed and name.rpartition(".")[0] in owners:
            raise UserError(
                f"{source!r} holds codes of type {kind} in {name} with scales beside them, and its config.json says "
                f"nothing of them; {INSTEAD}"
            )


def tensor_types(files: Iterable[Path]) -> dict[str, str]:
    """Return {name of a tensor: its type} by the headers of safetensors files."""
    types = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                types[name] = opened.get_slice(name).get_dtype()
    return types


def read_tensors(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Return all tensors of safetensors files, in memory."""
    tensors = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                tensors[name] = opened.get_tensor(name)
    return tensors


def dequantise(
    tensors: dict[str, torch.Tensor], quantisation: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Turn the codes of a checkpoint into bfloat16, with the scales beside them, which are then left out.

    Args:
        tensors: of the checkpoint, by name; emptied on the way, since both would take twice the memory.
        quantisation: what its configuration says of it.

    Raises:
        UserError: for codes without scales, or scales that do not fit.
    """
    method, block = (
        format_of(quantisation),
        quantisation.get("weight_block_size", BLOCK),
    )
    plain = {}
    for name in [one for one in tensors if _is_coded(one, tensors[one], method)]:
        codes = tensors.pop(name)
        if method == MXFP4:
            base = name.removesuffix(BLOCKS)
            scales = _scales(tensors, name, (f"{base}_scales",))
            plain[base] = _from_mxfp4(name, codes, scales)
        else:
            owner = name.removesuffix("weight")
            names = (f"{name}_scale_inv", *(owner + scale for scale in SCALES))
            plain[name] = _from_fp8(name, codes, _scales(tensors, name, names), block)
    for name, tensor in tensors.items():
        if name.endswith("weight") and tensor.dtype not in PLAIN:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{name} holds {kind}, which is no code of {method}; {INSTEAD}"
            )
        if not name.endswith(OF_ACTIVATIONS):
            plain[name] = tensor
    return plain


def _is_coded(name: str, tensor: torch.Tensor, method: str) -> bool:
    """Say whether a tensor of a checkpoint holds codes of weights."""
    return name.endswith(BLOCKS) if method == MXFP4 else tensor.dtype in CODES


def _scales(
    tensors: dict[str, torch.Tensor], name: str, names: Iterable[str]
) -> torch.Tensor:
    """Take the scales of a weight out of the tensors."""
    for one in names:
        if one in tensors:
            return tensors.pop(one)
    raise UserError(
        f"the codes of {name} have no scales beside them, such as {next(iter(names))}; fetch the checkpoint again"
    )


def _from_fp8(
    name: str, codes: torch.Tensor, scales: torch.Tensor, block: list[int] | None
) -> torch.Tensor:
    """Multiply 8-bit floats, (..., rows, columns), with their scales: one a block, one a row, or one for all.

    The last block of a row or a column is a short one where the size is no multiple (DeepSeek-V3, 576 rows of 128).
    """
    factors = _spread(_factors(scales), codes.shape, block)
    if factors is None:
        raise UserError(
            f"the scales of {name} are {tuple(scales.shape)}, which fits no {tuple(codes.shape)} codes in blocks of "
            f"{block}; fetch the checkpoint again"
        )
    return (codes.float() * factors).to(torch.bfloat16)


def _spread(
    factors: torch.Tensor, shape: torch.Size, block: list[int] | None
) -> torch.Tensor | None:
    """Return scales in a shape that multiplies codes of ``shape``, (..., rows, columns); None where they do not fit."""
    matrices, rows, columns = math.prod(shape[:-2]), *shape[-2:]
    if block:
        high, wide = block
        grid = (*shape[:-2], math.ceil(rows / high), math.ceil(columns / wide))
        if tuple(factors.shape) == grid:
            factors = factors.repeat_interleave(high, dim=-2)[..., :rows, :]
            return factors.repeat_interleave(wide, dim=-1)[..., :columns]
    if factors.numel() == 1:
        return factors.reshape(())
    if factors.numel() == matrices:
        return factors.reshape(*shape[:-2], 1, 1)
    if factors.numel() == matrices * rows:
        return factors.reshape(*shape[:-1], 1)
    return None


def _factors(scales: torch.Tensor) -> torch.Tensor:
    """Return scales as numbers; those of a byte are exponents of two, 127 for 1 (OCP MX, E8M0)."""
    if scales.dtype == torch.uint8:
        return torch.exp2(scales.float() - 127)
    return scales.float()


def _from_mxfp4(name: str, blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Unpack two 4-bit floats a byte, (experts, out, groups, 16), with a scale a group; returns (experts, in, out)."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    if blocks.shape[:-1] != scales.shape:
        raise UserError(
            f"the scales of {name} are {tuple(scales.shape)}, which fits no codes of {tuple(blocks.shape)}; "
            "fetch the checkpoint again"
        )
    return convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
