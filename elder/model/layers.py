"""Find a model's decoder layers, steer them while the model runs, and take some out for good."""

import copy
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from elder.errors import UserError
from elder.model.removal import layer_kind, plan_removal, text_config

# where families keep their layers, below get_decoder()
LAYER_LISTS = ("layers", "h", "blocks")
# Fields of a configuration that, where set, tie layers to one another, and how.
TIES = {
    "num_kv_shared_layers": "its last layers read the keys and values of earlier ones",
    "hidden_size_per_layer_input": "one embedding table holds a slice for each of its layers",
    "rescale_every": "it halves the hidden state after every few layers, counted from the first",
    "is_heterogeneous": "it configures its layers one by one",
}


def find_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of decoder layers of a causal language model of transformers.

    Raises:
        UserError: if the model is not a decoder alone, or its layers are not in one list.
    """
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{kind} has an encoder and a decoder; only decoder-only language models can be made shallower"
        )
    config = text_config(model)
    for field, reason in TIES.items():
        if getattr(config, field, None):
            raise UserError(
                f"{kind} cannot be made shallower: {reason} ({field} in its configuration)"
            )
    count = config.num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    for holder in (
        decoder,
        getattr(model, "base_model", None),
        getattr(model, "model", None),
    ):
        for name in LAYER_LISTS:
            layers = getattr(holder, name, None)
            if isinstance(layers, nn.ModuleList) and len(layers) == count:
                _refuse_shared_weights(kind, layers)
                return layers
    raise UserError(
        f"the {count} decoder layers of {kind} were not found below get_decoder(), in {', '.join(LAYER_LISTS)}"
    )


def _refuse_shared_weights(kind: str, layers: nn.ModuleList) -> None:
    owners: dict[int, int] = {}
    for index, layer in enumerate(layers):
        for parameter in layer.parameters():
            owner = owners.setdefault(id(parameter), index)
            if owner != index:
                raise UserError(
                    f"{kind} cannot be made shallower: its layers {owner} and {index} share weights"
                )


def hidden_of(output: Any) -> torch.Tensor:
    """Return the hidden state that a layer put out, (batch, tokens, hidden)."""
    return output[0] if isinstance(output, tuple | list) else output


class LayerControl:
    """Steers decoder layers while the model runs, inside a ``with`` block.

    Attributes:
        bypassed: layers that hand on what enters them, at no cost: h_{i+1} = h_i.
        scales: {bypassed layer: factor} on what it hands on; 1 where there is none.
        weights: one scalar a layer, (L,), or None. ``residual`` gives h + S (f(h) - h), ``output`` gives S f(h).
        replay: {layer: hidden state} that enters a layer in place of what arrives there.
        observe: called with (layer, hidden state in, hidden state out) after each layer.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self.layers = layers
        self.bypassed: set[int] = set()
        self.scales: dict[int, float] = {}
        self.weights: torch.Tensor | None = None
        self.place = "residual"
        self.replay: dict[int, torch.Tensor] = {}
        self.observe: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None
        self._beside: int | None = None
        self._outer: list[Callable | None] = []

    def __enter__(self) -> "LayerControl":
        self._outer = []  # of a control around this one
        for index, layer in enumerate(self.layers):
            self._outer.append(vars(layer).get("forward"))
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
                beside = self._count_beside(forward, args, kwargs)
                handed_on = entering * self.scales.get(index, 1.0)
                output = _bypassed(handed_on, beside)
            else:
                output = forward(*args, **kwargs)
                if self.weights is not None:
                    leaving = self._weigh(index, entering, hidden_of(output))
                    output = _with_hidden(output, leaving)
            if self.observe is not None:
                self.observe(index, entering, hidden_of(output))
            return output

        return run

    def _count_beside(self, forward: Callable, args: tuple, kwargs: dict) -> int:
        """Return how much this family's layers put out beside the hidden state, or -1 where it comes bare.

        The first bypassed layer is run once to see.
        """
        if self._beside is None:
            with torch.no_grad():
                output = forward(*args, **kwargs)
            self._beside = len(output) - 1 if isinstance(output, tuple | list) else -1
        return self._beside

    def _weigh(
        self, index: int, entering: torch.Tensor, leaving: torch.Tensor
    ) -> torch.Tensor:
        assert self.weights is not None
        weight = self.weights[index].to(leaving.dtype)
        if self.place == "output":
            return weight * leaving
        return entering + weight * (leaving - entering)


def _bypassed(entering: torch.Tensor, beside: int) -> Any:
    """Return what a layer that is not there puts out; see `LayerControl._count_beside`."""
    if beside < 0:
        return entering
    nothing = [None] * beside
    return (entering, *nothing)


def _with_hidden(output: Any, hidden: torch.Tensor) -> Any:
    """Return a layer's output with another hidden state in it."""
    if isinstance(output, tuple | list):
        return (hidden, *output[1:])
    return hidden


@contextmanager
def skipping(model: nn.Module, indices: Iterable[int]) -> Any:
    """Run the model as if the given layers were not there; the model itself is left as it is."""
    with LayerControl(find_layers(model)) as control:
        control.bypassed = set(indices)
        yield control


def twin(model: nn.Module) -> Any:
    """Return a model with modules of its own whose weights are the other's: no copies, and no memory.

    Layers can be taken out of it, and adapters put in.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def remove_layers(model: nn.Module, indices: Iterable[int]) -> None:
    """Take layers out of the model, in place, so that it equals an ordinary checkpoint of fewer layers.

    The configuration says the result in full, and each remaining layer learns its new index: generation with a cache
    breaks silently otherwise.

    Args:
        model: a causal language model.
        indices: layers to take out, counted from 0 in the model as it is.

    Raises:
        UserError: for an index out of range, for all layers at once, or where the configuration cannot say the result;
            the model is then as it was.
    """
    gone = set(indices)
    if not gone:
        return
    layers = find_layers(model)
    plan_removal(model, layers, gone).apply(model)
    for index in sorted(gone, reverse=True):
        del layers[index]


def check_removal(model: nn.Module, indices: Iterable[int]) -> None:
    """Refuse what `remove_layers` would refuse, and change nothing.

    Raises:
        UserError: as `remove_layers`.
    """
    plan_removal(model, find_layers(model), set(indices))


def fixed_layers(model: nn.Module, wanted: int) -> dict[int, str]:
    """Return the layers that the configuration cannot do without, each with the reason.

    A layer may go if its absence can be said by itself, or with that of its neighbours in a block of ``wanted``: some
    families repeat a pattern of a few layers. Neighbours alike in shapes and settings share one trial.
    """
    layers = find_layers(model)
    fixed: dict[int, str] = {}
    before, reason = None, ""
    for index, layer in enumerate(layers):
        kind = layer_kind(layer, index)
        if kind != before:
            before, reason = kind, _against(model, {index})
        if reason:
            fixed[index] = reason
    for start in range(len(layers) - wanted + 1):
        block = set(range(start, start + wanted))
        if block & fixed.keys() and not _against(model, block):
            fixed = {
                index: reason for index, reason in fixed.items() if index not in block
            }
    return fixed


def _against(model: nn.Module, indices: set[int]) -> str:
    """Say why layers cannot be removed; empty if they can."""
    try:
        check_removal(model, indices)
    except UserError as error:
        return str(error)
    return ""
