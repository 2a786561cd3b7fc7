"""Load a causal language model and its tokenizer safely, and describe them: digest, size, context."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elder import params
from elder.device import device_of
from elder.errors import UserError
from elder.model.check import (
    TOKENIZERS,
    check_model,
    one_sentence,
    published_config,
)
from elder.model.finite import refuse_broken_weights
from elder.model.layers import find_layers
from elder.model.offload import (
    Offload,
    as_stored,
    from_disk,
    needs_all,
    put,
    with_values,
)
from elder.model.published.adapter import Adapter, find_adapter, merge_adapter
from elder.model.published.dequantise import Dequantised, dequantised
from elder.model.published.quantised import (
    dequantise,
    format_of,
    read_tensors,
    refuse_codes,
    tensor_types,
    true_quantisation,
)
from elder.model.published.stored import refuse_amiss
from elder.model.published.text_part import class_of, text_part
from elder.model.removal import outline, text_config
from elder.model.shards import find_file, folder_of, weight_files
from elder.model.tokens import Bos, first_tokens, load_tokenizer
from elder.names import gguf_file, split_revision
from elder.parallel.ranks import count, in_turn, is_first
from elder.parallel.shard import divide, mesh, whole, whole_state
from elder.progress import say

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


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
        bos: what each block of its tokens begins with; see `elder.model.tokens`.
        again: loads it once more, whole and on the CPU; None where it is not divided among processes.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    dtype: torch.dtype
    dequantised_from: str | None = None
    file_sha256: str | None = None
    folder: Path | None = None
    bos: tuple[int, ...] = ()
    again: "Callable[[], Loaded] | None" = None

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return len(find_layers(self.model))


def load_model(
    wanted: params.Model,
    dtype: torch.dtype | None = None,
    bos: Bos = "auto",
    offload: Offload = "none",
) -> Loaded:
    """Load a causal language model and its tokenizer, after cheap checks that say in a sentence what is wrong.

    Besides GGUF, only safetensors are read, and no code that comes with a model is run unless asked for by name.

    Args:
        wanted: name (a folder, a GGUF file or a Hub id), revision, device, dtype, part, adapter, whether to trust code.
        dtype: overrides ``wanted.dtype``.
        bos: ``calibration.bos``: whether blocks of its tokens begin with the beginning-of-text token.
        offload: where its layers lie while they do not run, ``cpu`` or ``disk``; such a model can only be run.

    Raises:
        UserError: if the model is missing, incomplete, unsafe, not finite, not causal, or its layers cannot lie there.
    """
    device_of(wanted.device)  # refuses one that is not there before anything is read
    source, revision = split_revision(wanted.name)
    revision = revision or wanted.revision or "main"
    made = _from_gguf(source)
    if made:
        source, revision = str(made.folder), "main"
    checked = check_model(source, wanted)
    adapter = find_adapter(source, revision) if wanted.adapter == "merge" else None
    if adapter is not None:
        return _merged(adapter, wanted, dtype, bos, offload)
    commit = getattr(checked, "_commit_hash", None)
    common = {
        "revision": commit or revision,  # the branch may move meanwhile
        "trust_remote_code": wanted.trust_remote_code,
        "local_files_only": Path(source).is_dir(),
    }
    tokenizer = load_tokenizer(source, checked, wanted.name, common)
    model, dequantised_from = _model(source, checked, wanted, dtype, common, offload)
    refuse_broken_weights(model, repr(source))
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        name=wanted.name,
        revision=commit,
        dtype=model.dtype,
        dequantised_from=made.types if made else dequantised_from,
        file_sha256=made.file_sha256 if made else None,
        folder=folder_of(source, commit),
        bos=first_tokens(tokenizer, bos, wanted.name),
    )


def load_divided(
    wanted: params.Model,
    dtype: torch.dtype | None = None,
    bos: Bos = "auto",
    offload: Offload = "none",
) -> Loaded:
    """Load a model for all processes together: each keeps a part of every weight; one process, all of them.

    Its weights are frozen until something trains them. The machine holds one whole model at a time.

    Args:
        wanted: as in `load_model`.
        dtype: as in `load_model`.
        bos: as in `load_model`.
        offload: as in `load_model`; for one process alone.
    """
    if count() == 1:
        return load_model(wanted, dtype, bos, offload)
    device = device_of(wanted.device).type
    mesh(device)  # which all make together
    again = partial(load_model, wanted.model_copy(update={"device": "cpu"}), dtype, bos)

    def load() -> Loaded:
        loaded = again()
        loaded.model.requires_grad_(False)
        divide(loaded.model, find_layers(loaded.model), device)
        return loaded

    return replace(in_turn(load), again=again)


def put_together(loaded: Loaded) -> Loaded:
    """Return a model that was divided as one that can be saved: whole and on the CPU, on the first process alone."""
    if loaded.again is None:
        return loaded
    state = whole_state(loaded.model)
    if not is_first():
        return loaded
    fresh = loaded.again()
    # into its own weights: those that are one stay one
    fresh.model.load_state_dict(state)
    return fresh


def _from_gguf(source: str) -> Dequantised | None:
    """Return the checkpoint of a GGUF file; None where the name means no such file."""
    file = gguf_file(source)
    if file is None:
        return None
    with one_sentence(source, "model"):
        return dequantised(file)


def _model(
    source: str,
    checked: Any,
    wanted: params.Model,
    dtype: torch.dtype | None,
    common: Mapping[str, Any],
    offload: Offload,
) -> tuple[Any, str | None]:
    """Load a causal language model, and say which number format its weights were dequantised from."""
    dtype, device = dtype or DTYPES.get(wanted.dtype), device_of(wanted.device)
    config, kind = _config_and_class(source, common["revision"], wanted, checked)
    quantisation = true_quantisation(source, config, common["revision"])
    plain = quantisation is None and find_adapter(source, common["revision"]) is None
    on_disk: dict[str, dict[str, str]] = {}
    if offload == "disk":
        if not plain or config is not checked:
            raise needs_all(source, "they are not what its files hold", "cpu")
        on_disk = from_disk(outline(config, common["trust_remote_code"]), device)
    with one_sentence(source, "model"), as_stored(source):
        if plain:
            model, info = _stored(source, config, kind, dtype, {**common, **on_disk})
        else:
            tensors = _tensors(source, common["revision"], quantisation)
            if quantisation:
                dtype = dtype or torch.bfloat16
            model, info = _built(source, config, kind, tensors, dtype, common)
        if config is not checked:
            model = text_part(model)
    refuse_amiss(source, model, info)
    with one_sentence(source, "model"):
        put(model, device, offload)
    return model, format_of(quantisation) if quantisation else None


def _config_and_class(
    source: str, revision: str, wanted: params.Model, checked: Any
) -> tuple[Any, Any]:
    """Return configuration and class of what is loaded: of the larger model where its text part is wanted."""
    from transformers import AutoModelForCausalLM

    if wanted.part != "text":
        return checked, AutoModelForCausalLM
    whole = published_config(source, revision, wanted.trust_remote_code)
    if type(whole) is type(checked):
        return checked, AutoModelForCausalLM
    return whole, class_of(whole)


def _stored(
    source: str,
    config: Any,
    kind: Any,
    dtype: torch.dtype | None,
    common: Mapping[str, Any],
) -> tuple[Any, dict[str, set[str]]]:
    """Load weights as they are stored, and say what transformers found amiss."""
    loaded: Any = kind.from_pretrained(
        source,
        config=config,
        dtype=dtype or "auto",
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are refused by name
        output_loading_info=True,
        **common,
    )
    if not common["local_files_only"]:  # a folder's were looked at before any work
        refuse_codes(source, tensor_types(weight_files(source, common["revision"])))
    return loaded


def _tensors(
    source: str, revision: str, quantisation: Mapping[str, Any] | None
) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint; codes are dequantised to bfloat16."""
    tensors = read_tensors(weight_files(source, revision))
    if quantisation is None:
        return tensors
    say(
        f"{source!r} is quantised with {format_of(quantisation)}: its weights are dequantised to bfloat16"
    )
    return dequantise(tensors, quantisation)


def _built(
    source: str,
    config: Any,
    kind: Any,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype | None,
    common: Mapping[str, Any],
) -> tuple[Any, dict[str, set[str]]]:
    """Build a model of these tensors alone: transformers sees neither a quantisation nor an adapter beside them."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    if kind is AutoModelForCausalLM:
        kind = type(outline(config, common["trust_remote_code"]))
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype or "auto",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    with suppress(OSError):  # few have none
        model.generation_config = GenerationConfig.from_pretrained(source, **common)
    return model, info


def _merged(
    adapter: Adapter,
    wanted: params.Model,
    dtype: torch.dtype | None,
    bos: Bos,
    offload: Offload,
) -> Loaded:
    """Load the model that an adapter belongs to, and merge it; a tokenizer beside the adapter counts."""
    if offload != "none":
        raise needs_all(adapter.source, "an adapter is merged into them", "none")
    base = load_model(adapter.model(wanted), dtype, bos)
    source, revision = adapter.source, adapter.revision
    with one_sentence(source, "adapter"):
        model = merge_adapter(base.model, adapter)
    say(f"the adapter {adapter.source!r} is merged into {base.name!r}")
    refuse_broken_weights(model, repr(source))
    merged = replace(base, model=model.eval(), name=wanted.name)
    files = [find_file(source, name, revision) for name in TOKENIZERS]
    if any(files):
        common = {"revision": revision}
        own = load_tokenizer(source, model.config, wanted.name, common)
        place = next(file for file in files if file).parent
        first = first_tokens(own, bos, wanted.name)
        merged = replace(merged, tokenizer=own, folder=place, bos=first)
    return merged


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of all weights, whatever the files they came from."""
    digest = hashlib.sha256()
    for name, tensor in with_values(model, sorted(model.state_dict().items())):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values: Any = whole(tensor.detach()).cpu().contiguous()
        digest.update(values.view(-1).view(torch.uint8).numpy())
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
        token = loaded.tokenizer.convert_ids_to_tokens(largest)
        named = "" if token is None else f" ({token!r})"
        raise UserError(
            f"{str(source)!r} holds token {largest}{named}, and {loaded.name!r} knows {known} tokens: it was made for "
            "another tokenizer, or the model's tokenizer has tokens that the model was never resized for"
        )


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
