"""Whether the weights of a checkpoint are those that its configuration speaks of: by their names, types and shapes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from elder.errors import UserError
from elder.model.layers import LAYER_LISTS, find_layers
from elder.model.published.quantised import OF_ACTIVATIONS
from elder.model.removal import BEYOND

LAYER_OF_WEIGHT = re.compile(rf"\.(?:{'|'.join(LAYER_LISTS)})\.(\d+)\.")
# what older versions of transformers stored and newer ones work out: masks and the frequencies of positions
WORKED_OUT = ("inv_freq", "masked_bias", "attn.bias", "attention.bias")


def refuse_amiss(source: str, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose weights are not its configuration's: transformers would go on without a word.

    Args:
        source: its name.
        model: that was made of it.
        info: what transformers found amiss while it loaded.

    Raises:
        UserError: naming a tensor that is missing, has another shape, or that its layers have no place for.
    """
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would start these at random
        raise UserError(
            f"the weights of {source!r} lack {len(missing)} tensors, such as {missing[0]}; save it anew"
        )
    for name, stored, wanted in sorted(info["mismatched_keys"]):  # these, too
        raise UserError(
            f"{source!r} holds {name} of shape {tuple(stored)}, and its config.json asks for {tuple(wanted)}: one of "
            "the two is of another model; correct config.json, or save it anew"
        )
    find_layers(model)  # refuses what has none
    config: Any = model.config
    refuse_more_layers(source, config, info["unexpected_keys"])
    _refuse_strays(source, info["unexpected_keys"])


def _refuse_strays(source: str, names: Iterable[str]) -> None:
    """Refuse tensors inside layers that nothing reads: without them it is another model."""
    strays = [
        name
        for name in sorted(names)
        if LAYER_OF_WEIGHT.search(f".{name}")
        and not name.endswith((*WORKED_OUT, *OF_ACTIVATIONS))
    ]
    if strays:
        raise UserError(
            f"the layers of {source!r} hold {len(strays)} tensors that its config.json has no place for, such as "
            f"{strays[0]}: it describes another model; correct it (attention_bias, for biases), or delete them"
        )


def refuse_more_layers(source: str, config: Any, names: Iterable[str]) -> None:
    """Refuse a checkpoint with more layers than its configuration counts: they would be left out without a word.

    Args:
        source: its name.
        config: of the model; one for images, too, counts in several places and is left to loading.
        names: of its tensors.

    Raises:
        UserError: naming one of them.
    """
    count = getattr(config, "num_hidden_layers", None)
    if count is None or any(getattr(config, field, None) for field in BEYOND):
        return  # layers for speculation lie behind the last, and are not loaded
    if config.get_text_config(decoder=True) is not config:
        return
    for name in sorted(names):
        place = LAYER_OF_WEIGHT.search(name)
        if place and int(place[1]) >= count:
            raise UserError(
                f"{source!r} has {count} layers by its configuration, and weights of more, such as {name}; "
                "correct num_hidden_layers, or save it anew"
            )
