"""The loss without each of some layers, every layer before the candidate computed once."""

from collections.abc import Collection
from typing import Any

import torch

from elder.model.forward import next_token_losses
from elder.model.layers import LayerControl


def candidate_losses(
    model: Any,
    control: LayerControl,
    candidates: Collection[int],
    gone: Collection[int],
    ids: torch.Tensor,
) -> dict[int, torch.Tensor]:
    """Return {layer: loss of each block without it, (batch,) float64 on the CPU}; the layers in ``gone`` are bypassed.

    The pass without the last candidate goes through all that come before it, so it shows what enters each of them; the
    others begin there. Nothing is run but what their losses need.

    Args:
        model: in eval mode.
        control: of its layers, entered; afterwards it bypasses nothing.
        candidates: at least one layer, none of them in ``gone``.
        gone: layers that are not there either.
        ids: (batch, tokens) int64.
    """
    *others, last = sorted(candidates)
    entered: dict[int, torch.Tensor] = {}

    def keep(index: int, entering: torch.Tensor, _: torch.Tensor) -> None:
        if index in others:
            entered[index] = entering

    def losses() -> torch.Tensor:
        each = next_token_losses(model, ids)
        return each.double().cpu()

    control.bypassed = {*gone, last}
    control.replay = {}
    control.observe = keep
    found = {last: losses()}
    control.observe = None
    for candidate in others:
        control.bypassed = {*gone, *range(candidate + 1)}
        state = entered.pop(candidate)
        control.replay = {candidate: state}
        found[candidate] = losses()
    control.bypassed = set()
    control.replay = {}
    return found
