"""From hidden states to the vocabulary, a few positions at a time: logits are large, and never stand whole.

A model's head is more than a matrix in some families, which scale or cap logits. So it is run by the model itself,
whose decoder is told to put out the states that are given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from elder.device import device_of_model
from elder.model.layers import find_layers

AT_ONCE = 2**24  # logits: 64 MiB in float32


@dataclass
class PutOut(ModelOutput):
    """What a decoder puts out: states, and nothing of all else that a family may ask for, such as a cache."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        """Return None for what is not there."""
        if name.startswith("_"):
            raise AttributeError(name)


def states_of(model: Any, ids: Tensor) -> Tensor:
    """Return what enters the head, (batch, tokens, hidden); the head does not run.

    Args:
        model: a causal language model.
        ids: (batch, tokens) int64.
    """
    ids = ids.to(device_of_model(model))
    return _decoder(model)(input_ids=ids, use_cache=False)[0]


def logits_of_states(model: Any, states: Tensor) -> Tensor:
    """Return the logits of some positions, (positions, vocabulary).

    Args:
        model: a causal language model.
        states: what enters its head, (positions, hidden).
    """
    decoder, given = _decoder(model), states.unsqueeze(0)
    anything = torch.zeros(given.shape[:2], dtype=torch.long, device=given.device)
    decoder.forward = lambda *_, **__: PutOut(last_hidden_state=given)
    try:
        return model(input_ids=anything, use_cache=False).logits.squeeze(0)
    finally:
        del decoder.forward


def by_position(model: Any, loss: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """Return a loss at each position, (positions,), worked out for a few positions at a time.

    Where gradients are wanted and one portion does not do, each is computed once more in the backward pass, so that no
    more than one portion's logits are held.

    Args:
        model: whose vocabulary it is over.
        loss: of portions of ``given``, (n, ...) each; returns (n,).
        given: states and targets, (positions, ...) each.
    """
    size = max(1, AT_ONCE // model.get_input_embeddings().weight.shape[0])
    portions = list(zip(*(tensor.split(size) for tensor in given), strict=True))
    if len(portions) == 1:
        return loss(*given)
    if not torch.is_grad_enabled():
        return torch.cat([loss(*portion) for portion in portions])
    return torch.cat(
        [
            checkpoint(loss, *portion, use_reentrant=False, preserve_rng_state=False)
            for portion in portions
        ]
    )


def _decoder(model: Any) -> Any:
    """Return the part of a model that puts out what enters its head."""
    found = model.get_decoder()
    if found is not model:
        return found
    # Llama 4, for one, does not say which part it is
    first = find_layers(model)[0]
    return next(part for part in model.children() if first in part.modules())
