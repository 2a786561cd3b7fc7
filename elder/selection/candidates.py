"""The loss without each of some layers, every layer before the candidate computed once."""

from collections.abc import Sequence
from typing import Any

import torch

from elder.model.finite import refuse_not_finite
from elder.model.forward import next_token_losses, run_layers
from elder.model.layers import LayerControl
from elder.progress import Meter


def candidate_losses(
    model: Any,
    control: LayerControl,
    alive: Sequence[int],
    gone: set[int],
    batches: tuple[torch.Tensor, ...],
    step: Meter | None = None,
) -> dict[int, float]:
    """Return the mean loss over all blocks without each of ``alive``, the layers in ``gone`` being bypassed already.

    Raises:
        UserError: for a loss that is not finite.
    """
    totals = dict.fromkeys(alive, 0.0)
    for ids in batches:
        states: dict[int, torch.Tensor] = {}
        control.bypassed, control.replay = gone, {}

        def keep(
            index: int, entering: torch.Tensor, _: torch.Tensor, kept: dict = states
        ) -> None:
            if index in alive:
                kept[index] = entering

        control.observe = keep
        run_layers(model, ids)
        control.observe = None
        for candidate in alive:
            control.bypassed = gone | set(range(candidate + 1))
            control.replay = {candidate: states[candidate]}
            totals[candidate] += next_token_losses(model, ids).double().sum().item()
        if step:
            step()
    control.bypassed, control.replay = set(), {}
    count = sum(map(len, batches))
    for index, total in totals.items():
        refuse_not_finite(total, f"the loss without layer {index}")
    return {index: total / count for index, total in totals.items()}
