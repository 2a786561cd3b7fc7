"""How a model is made ready to train: all weights or adapters, layers computed twice to save memory, or compiled."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from elder.device import computes_on_cpu, device_of_model
from elder.errors import UserError
from elder.model.layers import find_layers
from elder.parallel.ranks import count
from elder.parallel.shard import merge_adapters


@contextmanager
def checkpointing(model: Any) -> Any:
    """Keep only what enters each layer for the backward pass, and compute the rest again: less memory, more time.

    Raises:
        UserError: if this family of models cannot.
    """
    # the older names, all that transformers 5.17 has, warn in newer versions
    name = (
        "activation"
        if hasattr(model, "activation_checkpointing_enable")
        else "gradient"
    )
    try:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"{error} Set gradient_checkpointing to false.") from None
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
        model.disable_input_require_grads()  # enabling asked for gradients of the embeddings' output, too


@contextmanager
def compiled(model: Any, wanted: bool) -> Iterator[None]:
    """Let torch compile the layers, which are alike: one compilation serves all of a kind."""
    layers = list(find_layers(model)) if wanted else []
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


@contextmanager
def trainable(model: Any, adapter_rank: int, seed: int) -> Any:
    """Let all weights train, or LoRA adapters of a rank that are merged into the weights at the end."""
    if not adapter_rank:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        yield model
        return
    from peft import LoraConfig, get_peft_model
    from peft.helpers import disable_input_dtype_casting

    torch.manual_seed(seed)
    config = LoraConfig(
        r=adapter_rank,
        lora_alpha=2 * adapter_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    # on a GPU `mixed_precision` casts, and what enters an adapter is not made float32 first
    on_cpu = computes_on_cpu(device_of_model(model))
    with nullcontext() if on_cpu else disable_input_dtype_casting(adapted):
        yield adapted
    if count() > 1:
        merge_adapters(adapted)
    else:
        adapted.merge_and_unload()
