"""What readers older than transformers 5 need of a checkpoint: its former names, and the tokenizer's own files.

transformers 5 writes the rotary embedding as ``rope_parameters``, and tokenizers under class names of its own.
transformers 4, and engines that read as it does, pass over the first in silence, which is another model, and refuse the
second. A checkpoint that says both is one model for all.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elder.files import in_hub_blobs, read_json, write_json
from elder.model.check import read_config

# Model type -> what the base of the rotary embedding and the share of a head that it turns were called.
ROTARY = {
    "gpt_neox": ("rotary_emb_base", "rotary_pct"),
    "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct"),
}
# The same where layers with a window turn by another base: in full attention, then in a window.
TWO_BASES = {"modernbert-decoder": ("global_rope_theta", "local_rope_theta")}
# Model type -> present name -> former name.
RENAMED = {
    "qwen3_moe": {"num_local_experts": "num_experts"},
    "falcon_mamba": {"use_mambapy": "use_falcon_mambapy"},
}
# Of this kind of scaling Phi-3 takes no other entries; the original length stands beside it.
LONGROPE = ("short_factor", "long_factor", "factor", "attention_factor")
# What transformers 4 calls the class of every tokenizer that is its tokenizer.json and no more.
GENERIC = {"TokenizersBackend": "PreTrainedTokenizerFast"}
TOKENIZER_FILES = (
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)


def write_older_names(folder: Path, source: Path | None, untied: bool = False) -> None:
    """Add to a saved checkpoint's config.json what older readers look for.

    Args:
        folder: as transformers saved it.
        source: the checkpoint that the model comes from. How it says such a field itself is kept: transformers adds to
            a ``rope_scaling`` what it found elsewhere, and older readers take that for more than it was.
        untied: whether the head has weights of its own, though the configuration says that it is the embeddings.
    """
    fields = read_config(folder)
    if untied:
        # version 5 sees that the weights differ; version 4 would put one in the other's place
        fields["tie_word_embeddings"] = False
    own = read_config(source) if source and (source / "config.json").is_file() else {}
    # transformers writes an infinite number in a way that only its own version 5 reads
    write_json(folder / "config.json", _with_older_names(_numbers(fields), own))


def _with_older_names(
    fields: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of a configuration, those nested in it too, with the former names beside the present ones."""
    kind = fields.get("model_type", "")
    older = _rotary(kind, fields)
    for name, former in RENAMED.get(kind, {}).items():
        if name in fields:
            older[former] = fields[name]
    if "dtype" in fields:
        older["torch_dtype"] = fields["dtype"]
    older |= {name: own[name] for name in older.keys() & own.keys() - {"torch_dtype"}}
    inner = {}
    for name, value in fields.items():
        if isinstance(value, dict) and "model_type" in value:
            beside = own.get(name)
            inner[name] = _with_older_names(
                value, beside if isinstance(beside, dict) else {}
            )
    return dict(sorted((dict(fields) | older | inner).items()))


def _rotary(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``rope_parameters`` says, by its former names; nothing for a model without a rotary embedding."""
    said = fields.get("rope_parameters")
    if not said:
        return {}
    if "full_attention" in said:  # one entry a kind of layer
        full, window = said["full_attention"], said.get("sliding_attention")
        base, local = TWO_BASES.get(kind, ("rope_theta", "rope_local_base_freq"))
        older = _one_rotary(full, base, "partial_rotary_factor")
        if window:
            older[local] = window.get("rope_theta")
        return older
    return _one_rotary(said, *ROTARY.get(kind, ("rope_theta", "partial_rotary_factor")))


def _one_rotary(said: Mapping[str, Any], base: str, share: str) -> dict[str, Any]:
    """Return the base, the share and the scaling, by their former names."""
    scaling = dict(said)
    older = {base: scaling.pop("rope_theta", None)}
    if "partial_rotary_factor" in scaling:
        older[share] = scaling.pop("partial_rotary_factor")
    kind = scaling.get("rope_type", "default")
    if kind == "longrope":
        scaling = {name: scaling[name] for name in LONGROPE if name in scaling}
        scaling["type"] = kind
    return older | {"rope_scaling": scaling if kind != "default" else None}


def _numbers(value: Any) -> Any:
    """Return a value of JSON with ``{"__float__": "Infinity"}`` as the number that it stands for."""
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {name: _numbers(entry) for name, entry in value.items()}
    return value


def write_tokenizer(tokenizer: Any, folder: Path, source: Path | None) -> None:
    """Write a tokenizer: its source's own files where there are any, otherwise as transformers saves it.

    Args:
        tokenizer: as it was loaded; nothing in this project changes one.
        folder: of the saved checkpoint.
        source: the checkpoint that it comes from.
    """
    tokenizer.save_pretrained(folder)  # with the code of one that brings its own
    originals = tokenizer_files(source) if source else []
    if originals and source:
        for path in tokenizer_files(folder):
            path.unlink()
        for path in originals:
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    _name_for_all(folder / "tokenizer_config.json")


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that make its tokenizer, sorted; links that lead out of it are none of them."""
    root = folder.resolve()
    found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}
    return sorted(
        path
        for path in found
        if path.is_file()
        and (path.resolve().is_relative_to(root) or in_hub_blobs(folder, path))
    )


def _name_for_all(path: Path) -> None:
    """Say in words that version 4 has, too, what only version 5 can say; a file without such words stays as it is."""
    if not path.is_file():
        return
    said = read_json(path)
    fields = dict(said)
    if "tokenizer_class" in said:
        fields["tokenizer_class"] = GENERIC.get(
            said["tokenizer_class"], said["tokenizer_class"]
        )
    if isinstance(said.get("extra_special_tokens"), list):  # a dict in version 4
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    if fields != said:
        write_json(path, fields)
