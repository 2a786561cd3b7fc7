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
from elder.files import read_json, refuse_pointer
from elder.model.hub import MODEL, Found, find, refusal
from elder.model.published.adapter import Adapter, find_adapter, refuse_unasked
from elder.model.published.gguf import read_gguf_config
from elder.model.published.quantised import (
    has_codes,
    quantisation_of,
    refuse_codes,
    refuse_quantised,
    tensor_types,
)
from elder.model.published.stored import refuse_more_layers
from elder.model.published.text_part import text_config_of
from elder.model.shards import (
    check_hub_index,
    check_indexes,
    name_unused,
    refuse_two_sets,
    weight_files,
)
from elder.names import gguf_file, is_hub_id, split_revision

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
OF_GPT2 = {"vocab.json", "merges.txt"}  # a tokenizer, too, where both are there
GENERATING = ("ForCausalLM", "LMHeadModel")  # how the names of such architectures end
# What a configuration may ask for at most, by the names of its fields: building more would take hours or all memory.
LIMITS = (
    (re.compile(r"(?:n|num)_(?:\w+_)?(?:layers?|experts|heads?)"), 10_000),
    (re.compile(r"\w+_size|n_embd|n_inner|d_model|d_ff"), 1 << 24),
)


def check_model(source: str, wanted: params.Model) -> Any:
    """Return the configuration of a causal language model, after all checks that need no weights; with a Hub's commit.

    Args:
        source: a folder, a GGUF file, or a Hub id without its revision.
        wanted: revision, which part, and whether remote code may run.

    Raises:
        UserError: if the model is missing, incomplete, unsafe, absurdly large, or not a causal language model.
    """
    file = gguf_file(source)
    if file is not None:
        return check_gguf(file)
    revision = split_revision(wanted.name)[1] or wanted.revision or "main"
    folder = Path(source)
    found = None if folder.is_dir() else _on_hub(source, revision)
    revision = found.commit if found else revision
    adapter = find_adapter(source, revision, found.files if found else None)
    if adapter is not None:
        refuse_unasked(adapter, wanted.adapter)
        if adapter.alone:
            return _check_base(adapter, wanted)
    fields = _hub_fields(source, found) if found else _folder_fields(folder)
    _refuse_absurd(source, fields)
    if found or has_codes(_types(source)):
        refuse_quantised(source, fields)
    needed = foreign_code(fields)
    if needed and not wanted.trust_remote_code:
        raise UserError(
            f"{source!r} needs {needed}; if you trust that, add --set model.trust_remote_code=true"
        )
    config = published_config(source, revision, wanted.trust_remote_code)
    if found is None:
        _check_weights(source, fields, config)
    return _causal(source, config, wanted)


def _on_hub(source: str, revision: str) -> Found:
    """Look a name up on the Hub, if it may be one there."""
    if Path(source).exists():
        raise UserError(
            f"{source!r} is a file; a model is a folder with config.json, weights and a tokenizer, or a .gguf file"
        )
    if not is_hub_id(source):
        raise UserError(
            f"there is no model folder {source!r}; give a folder, a GGUF file, a Hub id (owner/name), or"
            " models:/name@alias"
        )
    return find(source, revision, MODEL)


def _hub_fields(source: str, found: Found) -> dict[str, Any]:
    """Return the fields of the config.json of a model of the Hub, all its files being there."""
    from transformers import PreTrainedConfig

    if found.files is not None:
        _check_files(f"the model {source!r} of the Hub", found.files)
    with one_sentence(source, "configuration"):
        fields, _ = PreTrainedConfig.get_config_dict(source, revision=found.commit)
        check_hub_index(source, found.commit)
    return fields


def _folder_fields(folder: Path) -> dict[str, Any]:
    """Return the fields of the config.json of a model's folder, all its files being there."""
    _check_folder(folder)
    check_indexes(folder)
    refuse_two_sets(folder)
    return read_config(folder)


def _types(source: str) -> dict[str, str]:
    """Return {name: type} of the tensors of a folder."""
    with one_sentence(source, "model"):
        return tensor_types(weight_files(source, "main"))


def _check_weights(source: str, fields: Mapping[str, Any], config: Any) -> None:
    """Hold the headers of a folder's weights against its configuration, and name what is not read."""
    types = _types(source)
    if quantisation_of(fields) is None:
        refuse_codes(source, types)
    refuse_more_layers(source, config, types)
    name_unused(Path(source))


def _causal(source: str, config: Any, wanted: params.Model) -> Any:
    """Return the configuration of the causal language model that a model is, or holds where that part is wanted."""
    inner = text_config_of(config)
    if inner is not None and wanted.part == "text":
        return inner
    _refuse_other_kinds(source, config, wanted.trust_remote_code)
    return config


def check_gguf(file: Path) -> Any:
    """Return the configuration of a GGUF file, after all checks that need no weights.

    Raises:
        UserError: if the file is missing, damaged, absurdly large, or holds what transformers does not read.
    """
    source = str(file)
    if file.is_file():
        refuse_pointer(file)
    with one_sentence(source, "configuration"):
        config = read_gguf_config(file)
    _refuse_absurd(source, config.to_dict())
    _refuse_other_kinds(source, config, trust_remote_code=False)
    return config


def _check_base(adapter: Adapter, wanted: params.Model) -> Any:
    """Return the configuration of the model that an adapter should be merged into, after all checks of that."""
    base = adapter.model(wanted)
    try:
        return check_model(split_revision(base.name)[0], base)
    except UserError as error:
        raise UserError(
            f"{adapter.source!r} is an adapter of {adapter.base!r}: {error}"
        ) from None


def published_config(source: str, revision: str, trust_remote_code: bool) -> Any:
    """Return the configuration of a model as it was published: of the larger model where only its text part is wanted.

    Args:
        source: a folder, or a Hub id.
        revision: commit of a Hub id.
        trust_remote_code: whether code that comes with it may run.

    Raises:
        UserError: if transformers cannot read it.
    """
    from transformers import AutoConfig

    local = Path(source).is_dir()
    with one_sentence(source, "configuration"):
        config = AutoConfig.from_pretrained(
            source,
            revision=revision,
            trust_remote_code=trust_remote_code,
            local_files_only=local,
        )
    if not local:
        config._commit_hash = revision  # transformers 5 does not say it any more
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
        first = " ".join(str(error).split())[:300]
        if "custom code" in first:  # a tokenizer's; a model's is asked for before
            first = "it needs code that comes with it; if you trust that, add --set model.trust_remote_code=true"
        raise UserError(
            f"the {what} of {source!r} cannot be loaded: {first or type(error).__name__}"
        ) from None


def _refuse_other_kinds(source: str, config: Any, trust_remote_code: bool) -> None:
    if _generates_text(config, trust_remote_code):
        return
    kind = (config.architectures or [config.model_type])[0]
    way = "only models that generate text can be used"
    if text_config_of(config) is not None:
        way = "add --set model.part=text to take the text model that is in it"
    elif hasattr(config, "text_config"):
        way = "and transformers has no causal language model of its text part's own configuration (docs/families.md)"
    raise UserError(f"{source!r} is a {kind}, not a causal language model; {way}")


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
    for pattern in (*TOKENIZERS, "*.safetensors", "*.json"):
        for path in sorted(folder.glob(pattern)):
            refuse_pointer(path)


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
    if not names & set(TOKENIZERS) and not names >= OF_GPT2:
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
