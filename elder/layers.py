"""Find a model's decoder layers, steer them while the model runs, and take some out for good."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from elder.errors import UserError

LAYER_LISTS = ("layers", "h", "blocks")  # where families keep their layers, below get_decoder()
NOT_PER_LAYER = {"architectures", "eos_token_id", "bos_token_id", "pad_token_id", "bad_words_ids"}
PLAIN = (bool, int, float, str, type(None))


def text_config(model: nn.Module) -> Any:
    """Return the configuration that counts the decoder layers."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]


def find_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder layers of a causal language model of transformers.

    Raises:
        UserError: if the model is not a decoder alone, or its layers are not in one list.
    """
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"{kind} has an encoder and a decoder; only decoder-only language models can be made shallower")
    count = text_config(model).num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    for holder in (decoder, getattr(model, "base_model", None)):
        for name in LAYER_LISTS:
            layers = getattr(holder, name, None)
            if isinstance(layers, nn.ModuleList) and len(layers) == count:
                return layers
    raise UserError(
        f"the {count} decoder layers of {kind} were not found below get_decoder(), in {', '.join(LAYER_LISTS)}"
    )


def hidden_of(output: Any) -> torch.Tensor:
    """Return the hidden state that a layer put out, (batch, tokens, hidden)."""
    return output[0] if isinstance(output, tuple) else output


class LayerControl:
    """Steers decoder layers while the model runs, inside a ``with`` block.

    Attributes:
        bypassed: layers that hand on what enters them, at no cost: h_{i+1} = h_i.
        weights: one scalar a layer, (L,), or None. ``residual`` gives h + S (f(h) - h), ``output`` gives S f(h).
        replay: {layer: hidden state} that enters a layer in place of what arrives there.
        observe: called with (layer, hidden state in, hidden state out) after each layer.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self.layers = layers
        self.bypassed: set[int] = set()
        self.weights: torch.Tensor | None = None
        self.place = "residual"
        self.replay: dict[int, torch.Tensor] = {}
        self.observe: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None
        self._returns_tuple: bool | None = None
        self._outer: list[Callable | None] = []

    def __enter__(self) -> "LayerControl":
        self._outer = [vars(layer).get("forward") for layer in self.layers]  # of a control around this one
        for index, layer in enumerate(self.layers):
            layer.forward = self._steered(index, layer.forward)
        return self

    def __exit__(self, *_: object) -> None:
        for layer, outer in zip(self.layers, self._outer, strict=True):
            if outer is None:
                del layer.forward  # the class's own forward shows again
            else:
                layer.forward = outer

    def _steered(self, index: int, forward: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            entering = args[0] if args else kwargs["hidden_states"]
            entering = self.replay.get(index, entering)
            if args:
                args = (entering, *args[1:])
            else:
                kwargs["hidden_states"] = entering
            if index in self.bypassed:
                output: Any = (entering, None, None) if self._tupled(forward, args, kwargs) else entering
            else:
                output = forward(*args, **kwargs)
            leaving = hidden_of(output)
            if self.weights is not None and index not in self.bypassed:
                leaving = self._weigh(index, entering, leaving)
                output = (leaving, *output[1:]) if isinstance(output, tuple) else leaving
            if self.observe is not None:
                self.observe(index, entering, leaving)
            return output

        return run

    def _tupled(self, forward: Callable, args: tuple, kwargs: dict) -> bool:
        """Say whether this family's layers return (hidden state, ...); the first bypassed layer is run once to see."""
        if self._returns_tuple is None:
            with torch.no_grad():
                self._returns_tuple = isinstance(forward(*args, **kwargs), tuple)
        return self._returns_tuple

    def _weigh(self, index: int, entering: torch.Tensor, leaving: torch.Tensor) -> torch.Tensor:
        assert self.weights is not None
        weight = self.weights[index].to(leaving.dtype)
        return weight * leaving if self.place == "output" else entering + weight * (leaving - entering)


@contextmanager
def skipping(model: nn.Module, indices: Iterable[int]) -> Any:
    """Run the model as if the given layers were not there; the model itself is left as it is."""
    with LayerControl(find_layers(model)) as control:
        control.bypassed = set(indices)
        yield control


def remove_layers(model: nn.Module, indices: Iterable[int]) -> None:
    """Take layers out of the model, in place, so that it equals an ordinary checkpoint of fewer layers.

    The configuration's count and its per-layer lists are shortened, and each remaining layer learns its new index:
    generation with a cache breaks silently otherwise. A model built anew from the new configuration must agree in every
    weight's name and shape and in every plain attribute of every layer; else the removal is refused.

    Args:
        model: a causal language model.
        indices: layers to take out, counted from 0 in the model as it is.

    Raises:
        UserError: for an index out of range, for all layers at once, or where the configuration cannot say the result.
    """
    layers = find_layers(model)
    gone, count = set(indices), len(layers)
    if not gone:
        return
    if not gone < set(range(count)):
        raise UserError(f"cannot remove layers {sorted(gone)}: name some of 0 to {count - 1}, and leave at least one")
    kept = [index for index in range(count) if index not in gone]
    config = text_config(model)
    new_values = _shortened_config(config, kept, count)
    old_values = {key: getattr(config, key) for key in new_values}
    for key, value in new_values.items():
        setattr(config, key, value)
    try:
        rebuilt = _rebuild(model)
        _adopt({index: layers[index] for index in kept}, find_layers(rebuilt))
    except BaseException:
        for key, value in old_values.items():
            setattr(config, key, value)
        raise
    for index in sorted(gone, reverse=True):
        del layers[index]
    ours = {key: value.shape for key, value in model.state_dict().items()}
    theirs = {key: value.shape for key, value in rebuilt.state_dict().items()}
    if ours != theirs:
        odd = sorted(set(ours.items()) ^ set(theirs.items()))[0][0]
        raise UserError(
            f"{type(model).__name__} cannot lose layers {sorted(gone)}: its configuration cannot say {odd!r}"
        )


def _shortened_config(config: Any, kept: list[int], count: int) -> dict[str, Any]:
    values: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for key, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == count and key not in NOT_PER_LAYER:
            values[key] = type(value)(value[index] for index in kept)
    first_dense = getattr(config, "first_k_dense_replace", None)
    if isinstance(first_dense, int):
        values["first_k_dense_replace"] = sum(index < first_dense for index in kept)
    return values


def _rebuild(model: nn.Module) -> nn.Module:
    """Build the same class from its configuration on the meta device, where weights take no memory."""
    with torch.device("meta"):
        return type(model)(model.config)


def _adopt(ours: dict[int, nn.Module], theirs: Iterable[nn.Module]) -> None:
    """Give each kept layer its new index; refuse where weights or other attributes differ from a layer built anew."""
    changes = []
    for old_index, (layer, rebuilt) in zip(ours, zip(ours.values(), theirs, strict=True), strict=True):
        if _shapes(layer) != _shapes(rebuilt):
            raise UserError(f"layer {old_index} cannot move: the shortened configuration gives its place other weights")
        fresh = dict(rebuilt.named_modules())
        for name, module in layer.named_modules():
            for key, value in vars(module).items():
                new = getattr(fresh[name], key, None)
                if key.startswith("_") or key == "training" or not isinstance(value, PLAIN) or value == new:
                    continue
                if isinstance(value, bool) or value != old_index:
                    raise UserError(f"layer {old_index} cannot move: its {key} is {value!r}, its new place has {new!r}")
                changes.append((module, key, new))
    for module, key, new in changes:
        setattr(module, key, new)


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}
