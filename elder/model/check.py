"""Whether a name stands for a causal language model that can be loaded: all checks that need no weights."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elder import params
from elder.device import is_out_of_memory, out_of_memory
from elder.errors import UserError
from elder.files import read_json
from elder.model.gguf import read_gguf_config
from elder.model.hub import MODEL, find, refusal
from elder.model.shards import check_hub_index, check_indexes
from elder.names import gguf_file, is_hub_id, split_revision

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
GENERATING = ("ForCausalLM", "LMHeadModel")  # how the names of such architectures end
# What a configuration may ask for at most, by the names of its fields: building more would take hours or all memory.
LIMITS = (
    (re.compile(r"(?:n|num)_(?:\w+_)?(?:layers?|experts|heads?)"), 10_000),
    (re.compile(r"\w+_size|n_embd|n_inner|d_model|d_ff"), 1 << 24),
)


def check_model(source: str, wanted: params.Model) -> Any:
    """Return the configuration of a model, after all checks that need no weights; a Hub model's knows its commit.

    Args:
        source: a folder, a GGUF file, or a Hub id without its revision.
        wanted: revision, and whether remote code may run.

    Raises:
        UserError: if the model is missing, incomplete, unsafe, absurdly large, or not a causal language model.
    """
    from transformers import AutoConfig

    file = gguf_file(source)
    if file is not None:
        return check_gguf(file)
    folder = Path(source)
    revision = split_revision(wanted.name)[1] or wanted.revision or "main"
    if folder.is_dir():
        _check_folder(folder)
        check_indexes(folder)
        fields = read_config(folder)
    else:
        fields, revision = _check_on_hub(source, revision)
    _refuse_absurd(source, fields)
    needed = foreign_code(fields)
    if needed and not wanted.trust_remote_code:
        raise UserError(
            f"{source!r} needs {needed}; if you trust that, add --set model.trust_remote_code=true"
        )
    with one_sentence(source, "configuration"):
        config = AutoConfig.from_pretrained(
            source,
            revision=revision,
            trust_remote_code=wanted.trust_remote_code,
            local_files_only=folder.is_dir(),
        )
    if not folder.is_dir():
        config._commit_hash = revision  # transformers 5 does not say it any more
    _refuse_other_kinds(source, config, wanted.trust_remote_code)
    return config


def _check_on_hub(source: str, revision: str) -> tuple[dict[str, Any], str]:
    """Return the fields of the config.json of a model of the Hub, and the commit that its revision means."""
    from transformers import PreTrainedConfig

    if Path(source).exists():
        raise UserError(
            f"{source!r} is a file; a model is a folder with config.json, weights and a tokenizer, or a .gguf file"
        )
    if not is_hub_id(source):
        raise UserError(
            f"there is no model folder {source!r}; give a folder, a GGUF file, a Hub id (owner/name), or"
            " models:/name@alias"
        )
    found = find(source, revision, MODEL)
    if found.files is not None:
        _check_files(f"the model {source!r} of the Hub", found.files)
    with one_sentence(source, "configuration"):
        fields, _ = PreTrainedConfig.get_config_dict(source, revision=found.commit)
        check_hub_index(source, found.commit)
    return fields, found.commit


def check_gguf(file: Path) -> Any:
    """Return the configuration of a GGUF file, after all checks that need no weights.

    Raises:
        UserError: if the file is missing, damaged, absurdly large, or holds what transformers does not read.
    """
    source = str(file)
    with one_sentence(source, "configuration"):
        config = read_gguf_config(file)
    _refuse_absurd(source, config.to_dict())
    _refuse_other_kinds(source, config, trust_remote_code=False)
    return config


@contextmanager
def one_sentence(source: str, what: str) -> Iterator[None]:
    """Turn a failure of transformers, the Hub client or safetensors, which raise their own types, into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, f"the {what} of {source!r}") from None
        if not Path(source).exists() and (
            sentence := refusal(error, source, None, MODEL)
        ):
            raise UserError(sentence) from None
        first = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"the {what} of {source!r} cannot be loaded: {first or type(error).__name__}"
        ) from None


def _refuse_other_kinds(source: str, config: Any, trust_remote_code: bool) -> None:
    if not _generates_text(config, trust_remote_code):
        kind = (config.architectures or [config.model_type])[0]
        raise UserError(
            f"{source!r} is a {kind}, not a causal language model; only models that generate text can be used"
        )


def _generates_text(config: Any, trust_remote_code: bool) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    code = getattr(config, "auto_map", None) or {}
    if trust_remote_code and "AutoModelForCausalLM" in code:
        return True
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    named = config.architectures or []
    return not named or any(name.endswith(GENERATING) for name in named)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that lacks a file, or whose weights may run code."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        raise UserError(
            f"the model folder {str(folder)!r} is empty; it must hold config.json, safetensors and a tokenizer"
        )
    _check_files(f"the model folder {str(folder)!r}", names)


def _check_files(model: str, names: Set[str]) -> None:
    """Refuse a model that lacks a file, or whose weights may run code.

    Args:
        model: how a sentence calls it.
        names: of its files.
    """
    if "config.json" not in names:
        raise UserError(
            f"{model} has no config.json; save a model there with save_pretrained first"
        )
    if not fnmatch.filter(names, "*.safetensors"):
        pickles = sorted(
            name for pattern in PICKLES for name in fnmatch.filter(names, pattern)
        )
        if pickles:
            raise UserError(
                f"{model} has only pickle weights ({pickles[0]}), which can run code; convert them to safetensors"
            )
        raise UserError(f"{model} has no weights; it must hold *.safetensors")
    if "adapter_config.json" in names:
        raise UserError(
            f"{model} holds an adapter beside the weights, which transformers would add to them; "
            "merge it first, or delete adapter_config.json if that is done"
        )
    if not names & set(TOKENIZERS):
        raise UserError(
            f"{model} has no tokenizer; save one there with tokenizer.save_pretrained"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the fields of a model's config.json.

    Raises:
        UserError: if there are none.
    """
    fields = read_json(folder / "config.json", f"{folder}/config.json")
    if not isinstance(fields, dict):
        raise UserError(
            f"{folder}/config.json holds no configuration; save the model there again"
        )
    return fields


def foreign_code(fields: Mapping[str, Any]) -> str | None:
    """Say which code that is not transformers' own a model needs, by the fields of its config.json; None: none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kernel = _kernel(fields)
    if kernel:
        return f"code of the Hub, {kernel!r}"
    if fields.get("auto_map") and fields.get("model_type") not in CONFIG_MAPPING:
        return "code that comes with it"
    return None


def _kernel(fields: Mapping[str, Any]) -> str | None:
    """Return the repository whose code a configuration, or one nested in it, names as its attention or experts."""
    for name, value in fields.items():
        if name.endswith("_implementation"):
            given = value.values() if isinstance(value, dict) else [value]
            for text in map(str, given):
                if "/" in text:
                    return text
        elif isinstance(value, dict) and (inner := _kernel(value)):
            return inner
    return None


def _refuse_absurd(source: str, fields: Mapping[str, Any]) -> None:
    """Refuse counts and sizes that no model has, those of nested configurations too."""
    for name, value in fields.items():
        if isinstance(value, dict):
            _refuse_absurd(source, value)
        if not isinstance(value, int):
            continue
        for pattern, limit in LIMITS:
            if value > limit and pattern.fullmatch(name):
                raise UserError(
                    f"the configuration of {source!r} asks for {name} = {value}; at most {limit} can be built"
                )
