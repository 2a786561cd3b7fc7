"""Load a causal language model and its tokenizer safely, and describe them: digest, size, context."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elder import params
from elder.device import device_of
from elder.errors import UserError
from elder.model.check import check_model, one_sentence
from elder.model.dequantise import Dequantised, dequantised
from elder.model.finite import refuse_broken_weights
from elder.model.layers import LAYER_LISTS, find_layers
from elder.model.removal import BEYOND, text_config
from elder.names import gguf_file, split_revision

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LAYER_OF_WEIGHT = re.compile(rf"\.(?:{'|'.join(LAYER_LISTS)})\.(\d+)\.")


@dataclass
class Loaded:
    """A model with what belongs to it.

    Attributes:
        model: the causal language model, in ``dtype``, on its device, in eval mode.
        tokenizer: its tokenizer.
        name: as the user gave it.
        revision: commit of a Hub model, or None.
        dtype: of the checkpoint, unless the user asked for another.
        dequantised_from: the number format that the checkpoint's weights were dequantised from, such as fp8; None where
            they were not quantised.
        file_sha256: of the GGUF file that the checkpoint was made from.
        folder: where its files lie: the user's folder, or the Hub's copy on this machine; None where it has none.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    dtype: torch.dtype
    dequantised_from: str | None = None
    file_sha256: str | None = None
    folder: Path | None = None

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return len(find_layers(self.model))


def load_model(wanted: params.Model, dtype: torch.dtype | None = None) -> Loaded:
    """Load a causal language model and its tokenizer, after cheap checks that say in a sentence what is wrong.

    Besides GGUF, only safetensors are read, and no code that comes with a model is run unless asked for by name.

    Args:
        wanted: name (a folder, a GGUF file or a Hub id), revision, device, dtype, and whether remote code may run.
        dtype: overrides ``wanted.dtype``.

    Raises:
        UserError: if the model is missing, incomplete, unsafe, not a causal language model, or has weights that are not
            finite in this dtype.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device_of(wanted.device)
    source, revision = split_revision(wanted.name)
    made = _from_gguf(source)
    if made:
        source, revision = str(made.folder), None
    common = {
        "revision": revision or wanted.revision or "main",
        "trust_remote_code": wanted.trust_remote_code,
        "local_files_only": Path(source).is_dir(),
    }
    config = check_model(source, wanted)
    commit = getattr(config, "_commit_hash", None)
    if commit:  # the branch may move meanwhile
        common["revision"] = commit
    with one_sentence(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
    with one_sentence(source, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype or DTYPES.get(wanted.dtype) or "auto",
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
    model, info = loaded
    _check_weights(source, model, info)
    with one_sentence(source, "model"):
        model.to(device)
    refuse_broken_weights(model, repr(source))
    loaded = Loaded(model.eval(), tokenizer, wanted.name, commit, model.dtype)
    loaded.folder = _folder(source, commit)
    if made:
        loaded.dequantised_from, loaded.file_sha256 = made.types, made.file_sha256
    return loaded


def _from_gguf(source: str) -> Dequantised | None:
    """Return the checkpoint of a GGUF file; None where the name means no such file."""
    file = gguf_file(source)
    if file is None:
        return None
    with one_sentence(source, "model"):
        return dequantised(file)


def _folder(source: str, commit: str | None) -> Path | None:
    """Return where the files of a model that was loaded lie."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).is_dir():
        return Path(source)
    file = try_to_load_from_cache(source, "config.json", revision=commit)
    return Path(file).parent if isinstance(file, str) else None


def _check_weights(source: str, model: nn.Module, info: dict[str, set[str]]) -> None:
    """Refuse a checkpoint that is not the one its configuration speaks of."""
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would start these at random
        raise UserError(
            f"the weights of {source!r} lack {len(missing)} tensors, such as {missing[0]}; save it anew"
        )
    count = len(find_layers(model))
    if any(getattr(text_config(model), field, None) for field in BEYOND):
        return  # layers for speculation lie behind the last, and are not loaded
    for name in sorted(info["unexpected_keys"]):
        place = LAYER_OF_WEIGHT.search(name)
        if place and int(place[1]) >= count:
            raise UserError(
                f"{source!r} has {count} layers by its configuration, and weights of more, such as {name}; "
                "correct num_hidden_layers, or save it anew"
            )


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of all weights, whatever the files they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        )
    return digest.hexdigest()


def context_length(model: Any) -> int | None:
    """Return the number of positions a model was made for, or None where its configuration does not say."""
    return getattr(text_config(model), "max_position_embeddings", None)


def block_length(seq_len: int | str, model: Any) -> int:
    """Return the block length that ``seq_len`` means: ``auto`` is 2,048, or the model's context if that is shorter.

    Raises:
        UserError: if a given length is longer than the model's context.
    """
    context = context_length(model)
    if isinstance(seq_len, str):
        return min(2048, context or 2048)
    if context and seq_len > context:
        raise UserError(
            f"seq-len {seq_len} is longer than the model's context of {context} tokens; give at most {context}"
        )
    return seq_len


def check_tokens(loaded: Loaded, blocks: torch.Tensor, source: Path) -> None:
    """Refuse token ids that the model has no embedding for.

    Args:
        loaded: the model.
        blocks: token ids, (blocks, tokens), int64.
        source: what they were read from.

    Raises:
        UserError: naming the largest of them.
    """
    known = loaded.model.get_input_embeddings().weight.shape[0]
    largest = int(blocks.max())
    if largest >= known:
        raise UserError(
            f"{str(source)!r} holds token {largest}, and {loaded.name!r} knows {known} tokens: it was made for another "
            "tokenizer, or the model's tokenizer has tokens that the model was never resized for"
        )


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
