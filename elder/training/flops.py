"""How many floating-point operations something takes.

A product with weights takes 2 for each of them and each token, as many again for the gradient of what enters, and for
that of the weights (Kaplan et al., arXiv 2001.08361). What attention takes beside its weights is left out, and of a
mixture of experts all experts are counted.

They are counted while modules run where a model runs in ways of its own: as layers are chosen, and mended. Where a
whole model learns or writes, they are worked out from tokens.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook

from elder import params
from elder.model.layers import find_layers, hidden_of

PASS = 2  # floating-point operations of a token for each parameter, each way
LOOKED_UP = (nn.Embedding, _ConvNd)  # no products, or small ones of another form


class Counter:
    """Counts the operations of all modules that run inside a ``with`` block, gradients included.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        self.flops = 0

    def __enter__(self) -> "Counter":
        self._hook = register_module_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _count(self, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        weights = [one for one in module.parameters(recurse=False) if one.ndim > 1]
        if not weights or isinstance(module, LOOKED_UP):
            return
        ways = 1
        if torch.is_grad_enabled():
            entering = [one for one in given if isinstance(one, torch.Tensor)]
            ways += any(one.requires_grad for one in entering)
            ways += any(one.requires_grad for one in weights)
        leaving = hidden_of(output)
        tokens = leaving.numel() // leaving.shape[-1]
        self.flops += ways * PASS * sum(one.numel() for one in weights) * tokens


def size(module: nn.Module) -> int:
    """Return how many parameters a module has."""
    return sum(weight.numel() for weight in module.parameters())


def head_size(model: Any) -> int:
    """Return how many parameters the head has."""
    head = model.get_output_embeddings()
    return size(head) if head else 0


def passed(model: Any) -> int:
    """Return how many parameters a token passes: those of the layers and of the head."""
    return size(find_layers(model)) + head_size(model)


def of_training(model: Any, settings: params.Training, tokens: int) -> int:
    """Return what it takes a model to learn from so many tokens.

    Args:
        model: that learns.
        settings: frozen weights beside adapters have no gradient, and checkpointed layers run twice.
        tokens: that are learnt from.
    """
    ways = 3 - bool(settings.adapter_rank)
    again = settings.gradient_checkpointing * size(find_layers(model))
    return PASS * (ways * passed(model) + again) * tokens
