"""Problems for the selection methods, and the hidden states that their definitions speak of, read the slow way."""

from typing import Any

import torch

from elder.model.layers import find_layers
from elder.selection import METHODS, Problem

FAST = {
    "elder": {"lambda1": 0.05, "epochs": 1.0, "batch": 4, "shortlist": 1},
    "elder-authors": {"first": 0, "last": 0},
    "shortened-taylor": {"batch": 4},
}


def problem(
    model: Any,
    blocks: torch.Tensor,
    count: int,
    protect: tuple[int, ...] = (),
    seed: int = 0,
    method: str = "laco",
    **changes: Any,
) -> Problem[Any]:
    settings = METHODS[method].settings(**changes)
    return Problem(
        model, blocks, count, frozenset(protect), settings, seed, forward_batch=8
    )


def quick_problem(
    model: Any,
    blocks: torch.Tensor,
    count: int = 2,
    protect: tuple[int, ...] = (),
    method: str = "elder",
    **changes: Any,
) -> Problem[Any]:
    """Return one that takes few steps, and no second look at what they say."""
    changes = FAST.get(method, {}) | changes
    return problem(model, blocks, count, protect, method=method, **changes)


@torch.no_grad()
def literal_states(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return the last token's state before each layer and after the last one, for one block."""
    last: list[torch.Tensor] = []
    hook = find_layers(model)[-1].register_forward_hook(
        lambda _, __, output: last.append(output)
    )
    states = model(ids[None], output_hidden_states=True).hidden_states
    hook.remove()
    return [state[0, -1] for state in (*states[:-1], last[0])]
