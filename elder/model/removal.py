"""What a model's configuration and its layers must say once some layers are gone, worked out before anything changes.

The result of a removal must be an ordinary checkpoint: its configuration alone, read back by stock transformers or by
another reader, gives every remaining layer the weights and settings it has. A configuration speaks of layers in a few
ways: it counts them, counts those at the front, names some by their index, marks every n-th, or lists all of them. Each
way is a line of data here, so a new family needs at most one more name, and no code.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from elder.errors import UserError

# Fields that count all layers, beside num_hidden_layers.
COUNTS = {"num_layers", "n_layers", "n_layer", "num_decoder_layers"}
# Fields that count the layers before the first one of another kind.
LEADING = {
    "first_k_dense_replace",
    "max_window_layers",
    "num_dense_layers",
    "moe_layer_start_index",
}
# Fields that name the last layer of a kind.
LAST = {"moe_layer_end_index"}
# Lists of the indices of some layers.
INDICES = {"mlp_only_layers", "moe_layers", "attn_layer_indices"}
# Lists with an entry a layer, even if they are longer than the model; one as long as the model is taken for one, too.
PER_LAYER = {"layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type"}
NOT_PER_LAYER = {
    "architectures",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "time_step_limit",
}
# Fields that mark every n-th layer: field -> the list that says it in full, and what stands there at the marked ones.
# A sliding_window_pattern may be a string, too: one letter a layer, L or G, repeated (EXAONE 4). Where the marks follow
# no spacing any more, the field becomes 0 and the list alone speaks; left out, it would come back with its default.
SPACINGS = {
    "sliding_window_pattern": ("layer_types", "full_attention"),
    "_sliding_window_pattern": ("layer_types", "full_attention"),  # so Gemma 3 saves it
    "global_attn_every_n_layers": ("layer_types", "full_attention"),
    "layer_group_size": ("layer_types", "full_attention"),
    "no_rope_layer_interval": ("no_rope_layers", 0),
}
# Fields that count layers after the last, for speculation: they are not loaded with the model, so not saved with it.
BEYOND = {
    "num_nextn_predict_layers",
    "num_mtp_layers",
    "mtp_num_hidden_layers",
}
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Plan:
    """What a removal changes, besides the list of layers itself.

    Attributes:
        fields: of the configuration that counts the layers: name -> new value.
        attributes: of modules inside the kept layers: (module, name, new value).
    """

    fields: dict[str, Any]
    attributes: list[tuple[nn.Module, str, Any]]

    def apply(self, model: nn.Module) -> None:
        """Set them in the model."""
        for name, value in self.fields.items():
            setattr(text_config(model), name, value)
        for module, name, value in self.attributes:
            setattr(module, name, value)


def text_config(model: nn.Module) -> Any:
    """Return the configuration that counts the decoder layers."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]


def outline(
    config: Any, trust_remote_code: bool = False, device: str = "meta"
) -> nn.Module:
    """Build a causal language model without memory for its weights, to look at its layers.

    Args:
        config: of the model.
        trust_remote_code: whether code that comes with it may run.
        device: another one is for fake tensors, which have no memory anywhere.

    Raises:
        UserError: if transformers cannot build it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(
                config, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # each family complains in its own way
        raise UserError(
            f"no model can be built from this {type(config).__name__}: {_first_line(error)}"
        ) from None


def plan_removal(model: nn.Module, layers: nn.ModuleList, gone: set[int]) -> Plan:
    """Work out a removal and prove that the configuration can say it; the model is left as it is.

    A model built anew, without memory for weights, from the new configuration as it will be saved must agree with what
    is left in every weight's name and shape and in every plain attribute of every layer.

    Args:
        model: a causal language model.
        layers: its decoder layers.
        gone: indices of those to take out; not empty.

    Raises:
        UserError: for an index out of range, for all layers at once, or where the configuration cannot say the result.
    """
    count = len(layers)
    if not gone < set(range(count)):
        raise UserError(
            f"cannot remove layers {sorted(gone)}: name some of 0 to {count - 1}, and leave at least one"
        )
    kept = [index for index in range(count) if index not in gone]
    fields = shortened_fields(text_config(model), kept, count)
    rebuilt = _rebuilt(model, fields)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    reasons = _differences(model, rebuilt, prefix)
    attributes = []
    for old, fresh in zip(kept, rebuilt.get_submodule(prefix).children(), strict=True):
        changes, against = _compare(old, layers[old], fresh, fields)
        attributes += changes
        reasons += against
    if reasons:
        kind = type(model).__name__
        raise UserError(
            f"the configuration of a {kind} cannot say that layers {sorted(gone)} are gone: {reasons[0]}"
        )
    return Plan(fields, attributes)


def shortened_fields(config: Any, kept: list[int], count: int) -> dict[str, Any]:
    """Return the fields of a configuration that speak of layers, with what they must say when only ``kept`` are left.

    Args:
        config: the configuration that counts the layers; left as it is.
        kept: indices of the remaining layers, ascending.
        count: how many layers there are now.
    """
    left = len(kept)
    fields: dict[str, Any] = {"num_hidden_layers": left}
    for name, value in vars(config).items():
        fields |= _shortened(name, value, kept, count)
    fields |= _spacings(config, fields)
    if "interleave_moe_layer_step" in vars(config) and "moe_layers" in fields:
        experts = fields["moe_layers"]
        marks = [place in experts for place in range(left)]
        fields["interleave_moe_layer_step"] = _spacing(
            config.interleave_moe_layer_step, marks
        )
    if "attention_types" in vars(config) and "attention_layers" in fields:
        kinds = list(fields["attention_layers"])
        fields["attention_types"] = [[kinds, 1]]  # GPT-Neo: [[kinds, how often], ...]
    if "decoder_sparse_step" in vars(config):
        dense = fields.get("mlp_only_layers", [])
        fields |= _sparse_step(config, kept, dense)
    return fields


def _shortened(name: str, value: Any, kept: list[int], count: int) -> dict[str, Any]:
    """Return one field with its new value; nothing where it does not speak of layers."""
    if name in INDICES and value is not None:
        return {name: [place for place, index in enumerate(kept) if index in value]}
    if isinstance(value, list | tuple):
        if not _has_entry_a_layer(name, len(value), count):
            return {}
        entries = [value[index] for index in kept]
        return {name: type(value)(entries)}
    if name in COUNTS and value == count:
        return {name: len(kept)}
    if name in BEYOND and value:
        return {name: 0}
    if name in LEADING and value is not None:
        return {name: sum(index < value for index in kept)}
    if name in LAST and value is not None:
        return {name: sum(index <= value for index in kept) - 1}
    return {}


def _has_entry_a_layer(name: str, length: int, count: int) -> bool:
    """Say whether a list has an entry for each of ``count`` layers."""
    if name in NOT_PER_LAYER:
        return False
    return length == count or (name in PER_LAYER and length > count)


def _spacings(config: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that mark every n-th layer, for the lists that say the same in full."""
    spacings = {}
    for name, (listed, mark) in SPACINGS.items():
        value = vars(config).get(name)
        if value and listed in fields:
            marks = [entry == mark for entry in fields[listed]]
            spacings[name] = _spacing(value, marks)
    return spacings


def _spacing(value: Any, marks: list[bool]) -> Any:
    """Return the spacing that marks just these places: the old one if it still does, else another, else 0."""
    if isinstance(value, str):
        return _letters(value, marks)
    # one more than there are layers marks none
    for step in (value, *range(1, len(marks) + 2)):
        if _every(step, len(marks)) == marks:
            return step
    return 0


def _letters(old: str, marks: list[bool]) -> str:
    """Return the letters that mark these places, L or G a layer: the old ones if they still do."""
    repeated = [old[place % len(old)] for place in range(len(marks))]
    wanted = ["G" if mark else "L" for mark in marks]
    return old if repeated == wanted else "".join(wanted)


def _every(step: int, count: int) -> list[bool]:
    """Mark every step-th of ``count`` places, counted from 1."""
    return [place % step == 0 for place in range(1, count + 1)]


def _sparse_step(config: Any, kept: list[int], dense: list[int]) -> dict[str, Any]:
    """Say which layers have experts: every n-th that is not in mlp_only_layers (Qwen's); at worst list all others.

    Args:
        config: as it was.
        kept: indices of the remaining layers.
        dense: new mlp_only_layers, if only these were renamed.
    """
    step = config.decoder_sparse_step
    listed = getattr(config, "mlp_only_layers", None) or []
    # which places have experts: those that must, and those that the old step gives
    wanted, present = ([], [])
    for place, index in enumerate(kept):
        wanted.append(index not in listed and (index + 1) % step == 0)
        present.append(place not in dense and (place + 1) % step == 0)
    if wanted == present:
        return {}
    without = [place for place, has in enumerate(wanted) if not has]
    return {"decoder_sparse_step": 1, "mlp_only_layers": without}


def _rebuilt(model: nn.Module, fields: dict[str, Any]) -> nn.Module:
    """Build the same class from the new configuration, saved and read back, on the meta device: weights take no memory.

    Raises:
        UserError: if transformers refuses that configuration.
    """
    kind = type(model)
    config = copy.deepcopy(model.config)
    for name, value in fields.items():
        setattr(config.get_text_config(decoder=True), name, value)  # type: ignore[union-attr, operator]
    try:
        again = type(config).from_dict(config.to_diff_dict())  # type: ignore[union-attr, operator]
        again._attn_implementation = config._attn_implementation  # type: ignore[union-attr]
        with torch.device("meta"):
            return kind(again)
    except Exception as error:
        # each family's configuration checks itself in its own way
        raise UserError(
            f"a {kind.__name__} cannot be configured so: {_first_line(error)}"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _shapes(module: nn.Module, without: str = "") -> dict[str, torch.Size]:
    names = module.state_dict()
    return {
        name: value.shape
        for name, value in names.items()
        if not (without and name.startswith(f"{without}."))
    }


def _differences(model: nn.Module, rebuilt: nn.Module, layers: str) -> list[str]:
    """Name a weight outside the layers that a model built anew has not, or has in another shape."""
    odd = set(_shapes(model, layers).items()) ^ set(_shapes(rebuilt, layers).items())
    return [f"it gives {min(odd)[0]} another shape"] if odd else []


def _compare(
    old: int, layer: nn.Module, fresh: nn.Module, fields: dict[str, Any]
) -> tuple[list[tuple[nn.Module, str, Any]], list[str]]:
    """Compare a kept layer with its place in a model built anew: what to change in it, and what speaks against it."""
    if _shapes(layer) != _shapes(fresh):
        return [], [f"layer {old} cannot move, since its new place has other weights"]
    changes, against = [], []
    others = dict(fresh.named_modules())
    for path, module in layer.named_modules():
        for name, value in _settings(module).items():
            new = getattr(others.get(path), name, None)
            if value == new:
                continue
            if name in fields or _is_index(value, old):
                changes.append((module, name, new))
                continue
            against.append(
                f"layer {old} cannot move, since its {name} is {value!r} and its new place has {new!r}"
            )
    return changes, against


def layer_kind(layer: nn.Module, index: int) -> dict[str, Any]:
    """Describe a layer apart from its place: shapes of its weights and plain attributes, its index taken out."""
    kind: dict[str, Any] = dict(_shapes(layer))
    for path, module in layer.named_modules():
        for name, value in _settings(module).items():
            kind[f"{path}.{name}"] = "index" if _is_index(value, index) else value
    return kind


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return a module's plain attributes; whether it trains is none of its settings."""
    settings = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, PLAIN):
            settings[name] = value
    return settings


def _is_index(value: Any, index: int) -> bool:
    return value == index and not isinstance(value, bool)
