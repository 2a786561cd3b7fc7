"""Layers that lie on the CPU or in the model's files, each brought to the device while it runs, by accelerate's hooks.

Where gradients are wanted, each of these layers is computed twice: what the backward pass keeps of a layer holds its
weights, and those of all layers would be on the device at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elder.errors import UserError
from elder.model.layers import find_layers
from elder.progress import say

Offload = Literal["none", "cpu", "disk"]
Weights = Mapping[str, Tensor]  # by their names within a layer


def needs_all(source: str, why: str, instead: Offload) -> UserError:
    """Return the refusal of a model whose weights must be in memory, all of them, before any runs."""
    return UserError(
        f"the layers of {source!r} must be in memory first: {why}; set select.offload to {instead}"
    )


@contextmanager
def as_stored(source: str) -> Iterator[None]:
    """Say in a sentence that weights cannot stay in their files, since the model holds them in another form.

    Raises:
        UserError: for what transformers would have to write anew, the experts of most mixtures among it.
    """
    try:
        yield
    except ValueError as error:
        if "offload_folder" not in str(error):
            raise
        why = "its files hold them in another form"
        refusal = needs_all(
            source,
            why,
            "cpu",
        )
        raise refusal from None


def from_disk(outline: nn.Module, device: torch.device) -> dict[str, dict[str, str]]:
    """Return what ``from_pretrained`` is told so that the layers stay in their files, and all else goes to a device.

    Args:
        outline: the model; its weights are not looked at, so it may be on the meta device.
        device: where it is to run.
    """
    layers = set(find_layers(outline))
    found: dict[str, str] = {}

    def visit(path: str, module: nn.Module) -> None:
        if module in layers:
            found[path] = "disk"
            return
        if layers.isdisjoint(module.modules()):
            found[path] = str(device)
            return
        for owned in (module.named_parameters, module.named_buffers):
            for name, _ in owned(recurse=False):
                found[_below(path, name)] = str(device)
        for name, child in module.named_children():
            visit(_below(path, name), child)

    visit("", outline)
    return {"device_map": found}


def put(model: nn.Module, device: torch.device, offload: Offload) -> None:
    """Put a model on a device: all of it, or all but its layers.

    Args:
        model: whole and on the CPU; for ``disk`` as ``from_pretrained`` returned it with `from_disk`.
        device: where it is to run.
        offload: where its layers lie; they are frozen, unless they are on the device.
    """
    on_cpu = device.type == "cpu"
    if offload == "disk":
        _leave_on_disk(model, device)
        return
    if offload == "cpu" and not on_cpu:
        _leave_on_cpu(model, device)
        return
    if offload == "cpu":
        say("select.offload is cpu, and so is the device: all weights are there anyway")
    model.to(device)


def compute_twice(layer: nn.Module) -> None:
    """Let a layer keep nothing for the backward pass but what enters it, and run once more there.

    Its ``forward`` is replaced; what steers the layer wraps that.
    """
    forward = layer.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        again: Any = checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            **kwargs,
        )
        return again

    layer.forward = run  # type: ignore[method-assign]


def with_values(
    model: nn.Module, tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors of a model, each with its values, read one after the other where they lie elsewhere.

    Args:
        model: any model.
        tensors: of its ``named_parameters()`` or its ``state_dict()``.
    """
    elsewhere: dict[str, tuple[Weights, str]] = {}
    for path, module in model.named_modules():
        hook = _hook_of(module)
        if hook is None:
            continue
        for name, _ in module.named_parameters():
            place = hook.weights_map, name
            elsewhere[_below(path, name)] = place
    for path, tensor in tensors:
        if tensor.is_meta and path in elsewhere:
            weights, name = elsewhere[path]
            yield path, weights[name]
        else:
            yield path, tensor


def _leave_on_cpu(model: nn.Module, device: torch.device) -> None:
    """Put all of a model but its layers on a device; those stay on the CPU, where they are."""
    layers = find_layers(model)
    inside = {
        id(tensor)
        for tensor in (
            *layers.parameters(),
            *layers.buffers(),
        )
    }
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)  # tied ones stay tied
    for layer in layers:
        weights = {}
        for name, weight in layer.named_parameters():
            weights[name] = weight.data
        _fetch(layer, device, weights)


def _leave_on_disk(model: nn.Module, device: torch.device) -> None:
    """Let each layer of a model read its weights at once, when it runs.

    Accelerate has each module of a layer read its own; but some families use a module's weights without calling it.
    """
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import PrefixedDataset

    layers = find_layers(model)
    paths = {module: path for path, module in model.named_modules()}
    hooks = [_hook_of(module) for module in layers.modules()]
    stored = next(
        hook.weights_map.dataset  # one for all
        for hook in hooks
        if hook and hook.offload
    )
    remove_hook_from_module(model, recurse=True)
    for layer in layers:
        prefix = _below(paths[layer], "")
        weights = PrefixedDataset(
            stored,
            prefix,
        )
        _fetch(layer, device, weights)


def _fetch(layer: nn.Module, device: torch.device, weights: Weights) -> None:
    """Let a layer hold its weights while it runs, and only then."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    layer.requires_grad_(False)
    hook = AlignDevicesHook(
        device,
        offload=True,
        weights_map=weights,
        place_submodules=True,
    )
    add_hook_to_module(layer, hook)
    held = layer.forward
    layer.forward = _let_go(layer, held, hook)
    compute_twice(layer)


def _let_go(layer: nn.Module, forward: Callable, hook: Any) -> Callable:
    """Return a layer's ``forward`` that leaves no weights behind where it is broken off.

    Running out of memory does that; and the backward pass, which computes a layer again only as far as it must.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except BaseException:
            hook.post_forward(layer, None)
            raise

    return run


def _hook_of(module: nn.Module) -> Any:
    """Return accelerate's hook of a module; None where it has none."""
    return vars(module).get("_hf_hook")


def _below(path: str, name: str) -> str:
    """Return the path of what is called so in the module at a path."""
    return f"{path}.{name}" if path else name
