"""Adapters, LoRA and their like, alone or beside a whole model: merged or left out as asked, never used unasked."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from elder import params
from elder.errors import UserError
from elder.files import read_json
from elder.model.shards import ADAPTER, find_file

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """An adapter.

    Attributes:
        source: the folder or Hub id where it lies.
        revision: of a Hub id.
        base: the model that it was trained on, as its configuration names it.
        alone: no whole model lies beside it.
    """

    source: str
    revision: str
    base: str
    alone: bool

    def model(self, wanted: params.Model) -> params.Model:
        """Return what stands for the model that it is merged into: the one beside it, or its base."""
        if not self.alone:
            return wanted.model_copy(update={"adapter": "ignore"})
        own = {"name": self.base, "revision": None, "adapter": "ignore"}
        return wanted.model_copy(update=own)


def find_adapter(
    source: str, revision: str, files: Set[str] | None = None
) -> Adapter | None:
    """Return the adapter that lies in a folder or a repository of the Hub; None where none does.

    Args:
        source: the folder, or the Hub id.
        revision: of a Hub id.
        files: the names of what lies there, where they are known.

    Raises:
        UserError: if it does not say what its base is.
    """
    if files is not None and CONFIG not in files:
        return None
    path = find_file(source, CONFIG, revision)
    if path is None:
        return None
    fields = read_json(path, f"{source}/{CONFIG}")
    base = fields.get("base_model_name_or_path") if isinstance(fields, dict) else None
    alone = find_file(source, "config.json", revision) is None
    if alone and not base:
        raise UserError(
            f"{source!r} is an adapter, and its {CONFIG} names no base_model_name_or_path; write the base there"
        )
    return Adapter(source, revision, str(base), alone)


def refuse_unasked(adapter: Adapter, asked: str) -> None:
    """Refuse an adapter that nobody said what to do with.

    Args:
        adapter: alone or beside a model.
        asked: refuse, merge or ignore.

    Raises:
        UserError: naming the ways.
    """
    if adapter.alone and asked != "merge":
        raise UserError(
            f"{adapter.source!r} is an adapter of {adapter.base!r} and no whole model; add --set model.adapter=merge "
            "to merge it into that"
        )
    if asked == "refuse":
        raise UserError(
            f"{adapter.source!r} holds an adapter beside the weights of a whole model; add --set model.adapter=ignore "
            "to use the weights as they are, which is right where it was merged already, or --set model.adapter=merge"
        )


def merge_adapter(model: Any, adapter: Adapter) -> Any:
    """Return a model with an adapter merged into its weights, and nothing else of it left.

    Raises:
        UserError: if peft is not there, or the adapter has no safetensors, does not fit, or cannot be merged.
        Exception: what peft raises.
    """
    try:
        from peft import PeftConfig, get_peft_model
    except ImportError:
        raise UserError(
            f"merging the adapter {adapter.source!r} needs the package peft; install: pip install peft"
        ) from None
    weights = find_file(adapter.source, ADAPTER, adapter.revision)
    if weights is None:
        raise UserError(
            f"the adapter {adapter.source!r} has no {ADAPTER}; save it with save_pretrained, since pickles can run code"
        )
    pinned = {} if Path(adapter.source).is_dir() else {"revision": adapter.revision}
    config = PeftConfig.from_pretrained(adapter.source, **pinned)
    _make_room(model, weights)
    adapted: Any = get_peft_model(model, config)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise UserError(
            f"the adapter {adapter.source!r} is of type {config.peft_type}, which cannot be merged into weights"
        )
    found = adapted.load_adapter(adapter.source, "default", **pinned)
    odd = sorted([*found.missing_keys, *found.unexpected_keys])
    if odd:
        raise UserError(
            f"the adapter {adapter.source!r} does not fit its model, as {odd[0]} shows; take the base that it names,"
            f" {adapter.base!r}"
        )
    return adapted.merge_and_unload(safe_merge=True)


def _make_room(model: Any, weights: Path) -> None:
    """Give a model as many embeddings as an adapter brings, which was trained with added tokens."""
    embedding = model.get_input_embeddings()
    (name,) = [one for one, module in model.named_modules() if module is embedding]
    with safe_open(weights, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - it is no mapping
            rows, *_ = opened.get_slice(key).get_shape() or [0]
            if key.endswith(f"{name}.weight") and rows > embedding.num_embeddings:
                model.resize_token_embeddings(rows, mean_resizing=False)
                return
