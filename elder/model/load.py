"""Load a causal language model and its tokenizer safely, and describe them: digest, size, context."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elder import params
from elder.device import device_of, is_out_of_memory, out_of_memory
from elder.errors import UserError
from elder.model.layers import find_layers, text_config
from elder.names import is_hub_id, split_revision

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass
class Loaded:
    """A model with what belongs to it.

    Attributes:
        model: the causal language model, in ``dtype``, on its device, in eval mode.
        tokenizer: its tokenizer.
        name: as the user gave it.
        revision: commit of a Hub model, or None.
        dtype: of the checkpoint, unless the user asked for another.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    dtype: torch.dtype

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return len(find_layers(self.model))


def load_model(wanted: params.Model, dtype: torch.dtype | None = None) -> Loaded:
    """Load a causal language model from a folder or the Hub, after cheap checks that say what is wrong in a sentence.

    Only safetensors are read, and no code that comes with a model is run unless asked for by name.

    Args:
        wanted: name (a folder or a Hub id), revision, device, dtype, and whether remote code may run.
        dtype: overrides ``wanted.dtype``.

    Raises:
        UserError: if the model is missing, incomplete, unsafe, or not a causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device_of(wanted.device)
    source, revision = split_revision(wanted.name)
    revision = revision or wanted.revision
    common = {"revision": revision or "main", "trust_remote_code": wanted.trust_remote_code}
    config = check_model(source, wanted)
    tokenizer = _or_refuse(
        source, "tokenizer", lambda: AutoTokenizer.from_pretrained(source, **common)
    )
    kept = dtype or DTYPES.get(wanted.dtype) or "auto"
    options = common | {
        "config": config,
        "dtype": kept,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    model, info = _or_refuse(
        source, "model", lambda: AutoModelForCausalLM.from_pretrained(source, **options)
    )
    if missing := sorted(info["missing_keys"]):  # transformers would start these at random
        raise UserError(
            f"the weights of {source!r} lack {len(missing)} tensors, such as {missing[0]}; save it anew"
        )
    find_layers(model)
    _or_refuse(source, "model", lambda: model.to(device))
    return Loaded(
        model.eval(),
        tokenizer,
        wanted.name,
        getattr(config, "_commit_hash", None),
        model.dtype,
    )


def check_model(source: str, wanted: params.Model) -> Any:
    """Return the configuration of a model, after all checks that need no weights.

    Raises:
        UserError: as `load_model`.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    folder = Path(source)
    if folder.is_dir():
        _check_folder(folder, wanted.trust_remote_code)
    elif folder.exists():
        raise UserError(
            f"{source!r} is a file; a model is a folder with config.json, weights and a tokenizer"
        )
    elif not is_hub_id(source):
        raise UserError(
            f"there is no model folder {source!r}; give a folder, a Hub id (owner/name), or models:/name@alias"
        )
    revision = split_revision(wanted.name)[1] or wanted.revision or "main"
    config = _or_refuse(
        source,
        "configuration",
        lambda: AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=wanted.trust_remote_code
        ),
    )
    remote = wanted.trust_remote_code and "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    named = [
        name
        for name in config.architectures or []
        if name.endswith(("ForCausalLM", "LMHeadModel"))
    ]
    if not remote and (
        type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or (config.architectures and not named)
    ):
        kind = (config.architectures or [config.model_type])[0]
        raise UserError(
            f"{source!r} is a {kind}, not a causal language model; only models that generate text can be used"
        )
    return config


def _check_folder(folder: Path, trust_remote_code: bool) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = str(folder)
    if not any(folder.iterdir()):
        raise UserError(
            f"the model folder {name!r} is empty; it must hold config.json, safetensors and a tokenizer"
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"the model folder {name!r} has no config.json; save a model there with save_pretrained first"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name}/config.json is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(
            f"{name}/config.json holds no configuration; save the model there again"
        )
    if (
        config.get("auto_map")
        and config.get("model_type") not in CONFIG_MAPPING
        and not trust_remote_code
    ):
        raise UserError(
            f"{name!r} needs code that comes with it; if you trust that, add --set model.trust_remote_code=true"
        )
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"{name!r} has only pickle weights ({pickles[0]}), which can run code; convert them to safetensors"
            )
        raise UserError(f"the model folder {name!r} has no weights; it must hold *.safetensors")
    if not any(
        (folder / file).is_file()
        for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        raise UserError(
            f"the model folder {name!r} has no tokenizer; save one there with tokenizer.save_pretrained"
        )


def _or_refuse(source: str, what: str, load: Callable[[], Any]) -> Any:
    """Run one loading call of transformers, and turn its failure into one sentence."""
    try:
        return load()
    except UserError:
        raise
    # transformers, the Hub client and safetensors each raise their own types
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, f"the {what} of {source!r}") from None
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"the {what} of {source!r} cannot be loaded: {first or type(error).__name__}"
        ) from None


def weights_digest(model: nn.Module) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of all weights, whatever the files they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
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


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
