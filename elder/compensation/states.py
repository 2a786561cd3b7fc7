"""Hidden states at one layer, and one layer run by itself: what compensations that mend a layer at a time look at."""

from typing import Any

import torch

from elder.model.forward import run_layers
from elder.model.layers import LayerControl, find_layers


def states_at(
    model: Any, index: int, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a model up to a layer; returns what entered and what left it, (batch, tokens, hidden) each."""
    with LayerControl(find_layers(model)) as control:
        return _run_to(model, control, index, ids)


class LoneLayer:
    """One layer of a model, run without those before and after it, inside a ``with`` block.

    The model hands it all that it hands its layers, such as masks and positions, so that every family runs so.

    Args:
        model: any causal language model.
        index: of the layer.
    """

    def __init__(self, model: Any, index: int) -> None:
        self.model, self.index = model, index
        self.control = LayerControl(find_layers(model))

    def __enter__(self) -> "LoneLayer":
        self.control.__enter__()
        self.control.bypassed = set(range(self.index))
        return self

    def __exit__(self, *error: object) -> None:
        self.control.__exit__(*error)

    def __call__(self, entering: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of hidden states, (batch, tokens, hidden) both."""
        self.control.replay = {self.index: entering}
        # the tokens do not matter: only their number and places reach the layer
        ids = torch.zeros(entering.shape[:2], dtype=torch.int64)
        _, leaving = _run_to(self.model, self.control, self.index, ids)
        return leaving


def _run_to(
    model: Any, control: LayerControl, index: int, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    seen: list[torch.Tensor] = []

    def keep(layer: int, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        if layer == index:
            seen.extend((entering, leaving))

    control.observe = keep
    run_layers(model, ids, index)
    control.observe = None
    entering, leaving = seen
    return entering, leaving
