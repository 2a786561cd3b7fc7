"""Shortened LLaMA (arXiv 2402.02834): score every layer once, by perplexity or by gradient, and drop the lowest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from pydantic import Field
from torch import nn

from elder.model.forward import next_token_losses
from elder.model.layers import LayerControl, find_layers
from elder.params import Section
from elder.params.catalogue import NoSettings
from elder.progress import meter, say, track
from elder.selection.base import Problem, Round, Selection, lowest, offered, register
from elder.selection.trials import Trials

FIRST, LAST = 4, 2  # layers at the ends that the paper keeps for the Taylor score


@register("shortened-ppl", paper="arXiv 2402.02834", divided=True)
def select_by_perplexity(problem: Problem[NoSettings]) -> Selection:
    """Score each layer by the loss without it, the logarithm of the paper's perplexity; the lowest go, all at once.

    Every layer is offered that is not protected, the first and the last too.
    """
    layers = find_layers(problem.model)
    alive = offered(problem, len(layers))
    blocks = problem.blocks
    with (
        LayerControl(layers) as control,
        meter("loss without a layer", len(blocks)) as step,
    ):
        losses = Trials(problem, control, blocks, step=step)(alive, set()).losses
    values = [losses.get(index) for index in range(len(layers))]
    removed = lowest(values, problem.count)
    return Selection(
        removed, "loss without the layer", (Round(removed, tuple(values)),)
    )


class TaylorSettings(Section):
    """What the Taylor score depends on."""

    batch: int = Field(
        1, ge=1, description="blocks in a batch where gradients are taken"
    )


@register("shortened-taylor", settings=TaylorSettings, paper="arXiv 2402.02834")
def select_by_taylor(problem: Problem[TaylorSettings]) -> Selection:
    """Score each layer by the first-order change of the loss were its weights 0; the lowest go, all at once.

    The score is the sum over the layer's weight matrices of |sum w * dL/dw|, L the mean loss over all blocks. (The
    authors' code takes the magnitude of each element, before that sum.) The paper's rule to keep the first four and
    the last two layers holds where enough layers remain; else the longer end gives way, one layer at a time.
    """
    layers = find_layers(problem.model)
    offered(problem, len(layers))
    first, last = kept_ends(problem, len(layers))
    ends = {*range(first), *range(len(layers) - last, len(layers))}
    alive = offered(replace(problem, protected=problem.protected | ends), len(layers))
    scores = taylor(problem, {index: layers[index] for index in alive})
    values = [scores.get(index) for index in range(len(layers))]
    removed = lowest(values, problem.count)
    return Selection(
        removed,
        "Taylor importance",
        (Round(removed, tuple(values)),),
        problem.blocks.numel(),
    )


def kept_ends(problem: Problem[TaylorSettings], count: int) -> tuple[int, int]:
    """Return how many layers stay at the start and at the end: 4 and 2, or fewer, so that enough can go."""
    first, last = FIRST, LAST
    while (
        sum(i not in problem.protected for i in range(first, count - last))
        < problem.count
        and first + last > 0
    ):
        first, last = (first - 1, last) if first >= last else (first, last - 1)
    if (first, last) != (FIRST, LAST):
        say(
            f"shortened-taylor keeps the first {FIRST} and last {LAST} layers; that leaves fewer than {problem.count} "
            f"of {count} to remove, so it keeps the first {first} and last {last}"
        )
    return first, last


def taylor(
    problem: Problem[TaylorSettings], layers: dict[int, nn.Module]
) -> dict[int, float]:
    """Return the Taylor importance of each layer: the sum over its matrices of |sum w * dL/dw|, in nats."""
    matrices = {
        i: [p for p in layer.parameters() if p.ndim > 1] for i, layer in layers.items()
    }
    weights = [weight for group in matrices.values() for weight in group]
    # sum w * dL/dw is linear in L: a number a matrix is all to keep
    products = dict.fromkeys(weights, 0.0)

    def add(weight: nn.Parameter) -> None:
        assert weight.grad is not None
        products[weight] += (
            (weight.detach().float() * weight.grad.float()).double().sum().item()
        )
        weight.grad = None

    at_once = min(problem.settings.batch, problem.forward_batch)
    batches = problem.blocks.split(at_once)
    with only_trainable(problem.model, weights), torch.enable_grad():
        hooks = [weight.register_post_accumulate_grad_hook(add) for weight in weights]
        try:
            for ids in track(batches, "Taylor importance", len(batches)):
                loss = next_token_losses(problem.model, ids).sum() / len(problem.blocks)
                loss.backward()
        finally:
            for hook in hooks:
                hook.remove()
    return {
        index: sum(abs(products[weight]) for weight in group)
        for index, group in matrices.items()
    }


@contextmanager
def only_trainable(model: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to some weights alone; then every ``requires_grad`` is as it was."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in before.items():
            parameter.requires_grad_(flag)
