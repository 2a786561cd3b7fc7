"""From hidden states to the vocabulary, a few positions at a time: logits are large, and never stand whole.

A model's head is more than a matrix in some families, which scale or cap logits. So it is run by the model itself,
whose decoder is told to put out the states that are given.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from elder.device import computes_on_cpu, device_of_model
from elder.model.layers import find_layers
from elder.parallel.ranks import count

AT_ONCE = 2**23  # logits on a CPU: 32 MiB in float32, of which a loss holds several
AT_ONCE_ON_GPU = 2**26  # smaller portions leave it waiting for the next
LEAST = 128  # positions: with each portion all of a large head's gradient is added up


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
    decoder = _decoder(model)
    # a model that is divided among processes puts itself together where it is called itself
    called = model.get_base_model() if hasattr(model, "get_base_model") else model
    called.forward = lambda given: decoder(input_ids=given, use_cache=False)[0]
    try:
        return called(ids)
    finally:
        del called.forward


@contextmanager
def states_seen(model: Any) -> Iterator[list[Tensor]]:
    """Collect what enters the head while a model writes: of the prompts first, then of one token after the other."""
    seen: list[Tensor] = []
    hook = _decoder(model).register_forward_hook(
        lambda _, __, made: seen.append(made[0])
    )
    try:
        yield seen
    finally:
        hook.remove()


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


def positions_at_once(vocabulary: int, on_cpu: bool) -> int:
    """Return how many positions' logits may stand at once."""
    most = AT_ONCE if on_cpu else AT_ONCE_ON_GPU
    return max(LEAST, most // vocabulary)


def by_position(
    model: Any, loss: Callable[..., Tensor], states: Tensor, *given: Tensor
) -> Tensor:
    """Return a loss at each position, (positions,), worked out for a few positions at a time.

    Where gradients are wanted and one portion does not do, those of each portion are worked out together with its
    losses, so that no more than one portion's logits are held and nothing is computed twice. Where several processes
    divide the model, the backward pass works each portion out once more instead.

    Args:
        model: whose vocabulary it is over; its losses weigh alike where its weights learn, as those of a mean do.
        loss: of portions of states and ``given``, (n, ...) each; returns (n,).
        states: what enters the head, (positions, hidden).
        given: what else the loss is of, (positions, ...) each, without gradient.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    size = positions_at_once(vocabulary, computes_on_cpu(states.device))
    portions = list(zip(*(each.split(size) for each in (states, *given)), strict=True))
    if len(portions) == 1:
        return loss(states, *given)
    if not torch.is_grad_enabled():
        return torch.cat([loss(*portion) for portion in portions])
    if count() > 1:
        # a backward pass within the forward pass would take a divided model apart
        return torch.cat([_again_when_needed(loss, portion) for portion in portions])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return _InPortions.apply(loss, portions, states, *weights)


def _again_when_needed(
    loss: Callable[..., Tensor], portion: tuple[Tensor, ...]
) -> Tensor:
    """Return the losses of a portion, which the backward pass works out once more."""
    return checkpoint(loss, *portion, use_reentrant=False, preserve_rng_state=False)


class _InPortions(torch.autograd.Function):
    """Losses by portions; the forward pass works out the gradients of their sum, the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Callable[..., Tensor],
        portions: list[tuple[Tensor, ...]],
        _: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """Return the losses of all portions, (positions,)."""
        losses = []
        slopes = []  # of each loss, by its states
        sums: list[Tensor | None] = [None] * len(weights)
        for portion in portions:
            states = portion[0].detach().requires_grad_()
            with torch.enable_grad():
                found = loss(states, *portion[1:])
                slope, *shares = torch.autograd.grad(
                    found.sum(), [states, *weights], allow_unused=True
                )
            losses.append(found.detach())
            slopes.append(slope)
            for index, share in enumerate(shares):
                so_far = sums[index]
                sums[index] = share if so_far is None else so_far.add_(share)
        ctx.slopes, ctx.sums = torch.cat(slopes), sums
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by the states and by each weight."""
        (gradient,) = gradients
        slopes, sums = ctx.slopes, ctx.sums
        del ctx.slopes, ctx.sums  # as large as the head: they are scaled in place
        learnt = [each for each in sums if each is not None]
        known = not is_fake(gradient)  # a plan runs on tensors that hold no values
        if learnt and known and bool((gradient != gradient[0]).any()):
            raise ValueError(
                "losses of all positions weigh alike where the head learns"
            )
        for each in learnt:
            each.mul_(gradient[0])
        return None, None, slopes.mul_(gradient.unsqueeze(1)), *sums


def _decoder(model: Any) -> Any:
    """Return the part of a model that puts out what enters its head."""
    found = model.get_decoder()
    if found is not model:
        return found
    # Llama 4, for one, does not say which part it is
    first = find_layers(model)[0]
    return next(part for part in model.children() if first in part.modules())
