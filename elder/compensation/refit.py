"""Refit: each kept layer beside a gap learns by itself to put out what it and the layers that went put out together.

As XMerge (arXiv 2609.02083) and block-local reconstruction (arXiv 2510.14444) have it, the layer learns from hidden
states alone: no loss passes through the rest of the model, which runs only to tell what enters the layer and what the
dense model puts out after the last layer that the layer stands for. With s what it puts out and t that dense state,

    L = mean over tokens of ||s - t||^2 / ||t||^2

This project's own reading: its inputs are those of the shallower model, mended so far from the first gap on, so that it
makes up for what is lost before it, too; an eighth of the blocks judges, and where they are not met better than before,
the layer stays as it was. Where asked for it begins from the map that `ghost` adds to its last projection, if that
helps held-out blocks.

The budget: one token through the training of one layer counts as the share that the layer's parameters have in all that
a token passes, the layers and the head. ``tokens_seen`` of the record holds it, beside that of every other training.
Before a recovery, which pays for it, it takes a small part of that one's budget: where layers are few, each is a large
share of the model, and what single layers learnt is worth less than what all learn together.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from elder.compensation.base import Group, Pruned, find_groups, register
from elder.compensation.ghost import GhostSettings, add, lacking, solve
from elder.compensation.linear import Moments, find_site
from elder.compensation.states import LoneLayer, states_at
from elder.device import device_of_model
from elder.errors import UserError
from elder.model.forward import mixed_precision
from elder.model.layers import find_layers
from elder.params import Section
from elder.progress import say
from elder.record import Json, Spent
from elder.training import flops
from elder.training.checkpoint import Schedule
from elder.training.loop import TrainingRun, train
from elder.training.losses import state_mismatch
from elder.training.micro_batch import MicroBatch
from elder.training.search import hold_out

WARMUP = 0.03


class RefitSettings(Section):
    """What the learning of single layers depends on."""

    epochs: float = Field(
        6.0, gt=0, description="passes of each such layer over the states of the blocks"
    )
    most: float = Field(
        0.0625,
        gt=0,
        le=1,
        description="share of the recovery's budget that it takes at most",
    )
    batch: int = Field(4, ge=1, description="blocks in a step")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices inside the layer"
    )
    lr: float = Field(
        0.01, gt=0, description="peak learning rate, as a share of each weight's size"
    )
    least_squares: bool = Field(
        False,
        description="begin from what ghost's map does to the layer, at no training",
    )


@register("refit", settings=RefitSettings, paper="arXiv 2609.02083")
def refit(pruned: Pruned[RefitSettings]) -> dict[str, Json]:
    """Let each kept layer that stands for others learn what they put out, from the first to the last.

    Returns:
        {gaps: [{removed, into, held_out_error: {before, after}, kept, steps, solving}], tokens, layer_tokens, share,
        flops: {training, forward, solving}}; ``layer_tokens`` passed through the training of one layer each, ``share``
        is such a layer's of the model, and ``kept`` says whether what was learnt stays. ``solving`` adds up normal
        equations, 0 where a gap does not begin from them. What attention takes beside its weights is left out.
    """
    groups = find_groups(pruned.removed, len(find_layers(pruned.dense)))
    records: list[Json] = []
    layer_tokens, forward, training, solving, shares = 0, 0, 0, 0, []
    pruned.model.requires_grad_(False)
    for group in groups:
        layer = find_layers(pruned.model)[group.place]
        share = share_of(layer, pruned.model)
        record, spent = learn(pruned, group, most_steps(pruned, share * len(groups)))
        pruned.spent.tokens_seen += math.ceil(share * spent.tokens_seen)
        pruned.spent.optimizer_steps += spent.optimizer_steps
        pruned.spent.trainable_parameters = max(
            pruned.spent.trainable_parameters, spent.trainable_parameters
        )
        layer_tokens += spent.tokens_seen
        training += 3 * flops.PASS * flops.size(layer) * spent.tokens_seen
        forward += flops.PASS * passed(pruned, group) * pruned.blocks.numel()
        if pruned.settings.least_squares:
            forward += flops.PASS * flops.size(layer) * pruned.blocks.numel()
            solving += record["solving"]
        shares.append(share)
        records.append(record | {"steps": spent.optimizer_steps})
    return {
        "gaps": records,
        "tokens": pruned.blocks.numel(),
        "layer_tokens": layer_tokens,
        "share": max(shares),
        "flops": {"training": training, "forward": forward, "solving": solving},
    }


def most_steps(pruned: Pruned[RefitSettings], share: float) -> int:
    """Return the steps that a layer may take.

    Args:
        pruned: the model.
        share: of a token's passage, of all layers that learn.
    """
    settings = pruned.settings
    count = len(hold_out(pruned.blocks)[0])
    steps = settings.epochs * count / settings.batch
    if pruned.budget is not None:
        tokens = settings.batch * pruned.blocks.shape[1]
        steps = min(steps, settings.most * pruned.budget / (share * tokens))
    return max(1, int(steps))


def learn(
    pruned: Pruned[RefitSettings], group: Group, steps: int
) -> tuple[dict[str, Json], Spent]:
    """Train one kept layer, keep it if it meets the held-out blocks better, and say so."""
    entering, target, plain = collect(pruned, group)
    count = len(hold_out(pruned.blocks)[0])
    layer = find_layers(pruned.model)[group.place]
    former = copy.deepcopy(layer.state_dict())
    before = plain[count:].mean().item()
    learnt = entering[:count], target[:count]
    judging = entering[count:], target[count:]
    with LoneLayer(pruned.model, group.place) as alone:
        change = least_squares(pruned, alone, learnt, judging)
        with in_float32(layer):
            if change is not None:
                add(*change)
            spent = fit(pruned, alone, *learnt, steps)
    with LoneLayer(pruned.model, group.place) as alone:
        after = error_of(alone, *judging)
    better = after < before  # not so where it is nan
    if not better:
        layer.load_state_dict(former)
    say(
        f"layer {group.kept} for {', '.join(map(str, group.members))}: held-out error {before:.4f} to {after:.4f}, "
        f"{'kept' if better else 'left out'}"
    )
    error = {"before": before, "after": after if math.isfinite(after) else None}
    shape = (0, 0) if change is None else change[1].shape
    return {
        "solving": normal_equations(*shape) * pruned.blocks.numel(),
        "removed": group.removed,
        "into": group.kept,
        "kept": better,
        "held_out_error": error,
    }, spent


def least_squares(
    pruned: Pruned[RefitSettings],
    alone: LoneLayer,
    learnt: tuple[Tensor, Tensor],
    judging: tuple[Tensor, Tensor],
) -> tuple[nn.Module, Tensor] | None:
    """Return a layer's last projection and what, added to it, brings the layer nearest to what it should put out.

    None where that is not asked for, helps no block that judges, or the layer does not end with such a projection.

    Args:
        pruned: the model.
        alone: the layer.
        learnt: what enters it and what should leave it, (blocks, tokens, hidden) both, of the blocks to learn from.
        judging: the same of the held-out blocks.
    """
    if not pruned.settings.least_squares:
        return None
    try:
        site = find_site(pruned.model, alone.index, pruned.blocks[:1])
    except UserError:
        return None
    device = device_of_model(pruned.model)

    def moments(entering: Tensor, target: Tensor) -> Moments:
        return Moments.of(
            lacking(site, alone, one.to(device), wanted.to(device))
            for one, wanted in zip(entering.split(1), target.split(1), strict=True)
        )

    change = solve(moments(*learnt), GhostSettings().ridge)
    held = moments(*judging)
    helps = held.error(change) < held.error(torch.zeros_like(change))
    return (site.module, change) if helps else None


def error_of(alone: LoneLayer, entering: Tensor, target: Tensor) -> float:
    """Return how far what a layer puts out is from ``target``, (blocks, tokens, hidden) both: the mean over blocks."""
    device = device_of_model(alone.model)
    errors = [
        state_mismatch(alone(one.to(device)), wanted.to(device)).item()
        for one, wanted in zip(entering.split(1), target.split(1), strict=True)
    ]
    return sum(errors) / len(errors)


def fit(
    pruned: Pruned[RefitSettings],
    alone: LoneLayer,
    entering: Tensor,
    target: Tensor,
    steps: int,
) -> Spent:
    """Train a layer, in place, to put out ``target`` where ``entering`` enters it, (blocks, tokens, hidden) both."""
    settings, layer = pruned.settings, find_layers(pruned.model)[alone.index]
    device = device_of_model(pruned.model)
    compute = torch.float32 if entering.dtype == torch.float32 else torch.bfloat16
    # the loop draws batches of rows: each row holds its own number, as often as it has tokens, so that they are counted
    numbers = torch.arange(len(entering))[:, None].expand(-1, entering.shape[1])

    def loss(rows: Tensor) -> Tensor:
        chosen = rows[:, 0]
        with mixed_precision(layer, compute):
            leaving = alone(entering[chosen].to(device))
        return state_mismatch(leaving, target[chosen].to(device))

    schedule = Schedule(
        steps=steps,
        batch=settings.batch,
        optimizer=settings.optimizer,
        lr=settings.lr,
        relative=True,
        warmup=WARMUP,
        weight_decay=0.0,
        seed=pruned.seed,
    )
    label = f"refit of layer {alone.index}"
    at_once = MicroBatch(label, min(settings.batch, pruned.batch))
    run = TrainingRun(label, pruned.seed, torch.float32, micro_batch=at_once)
    layer.requires_grad_(True)
    with torch.enable_grad():
        spent = train(pruned.model, numbers, loss, schedule, run)
    layer.requires_grad_(False)
    return spent


@torch.no_grad()
def collect(pruned: Pruned[Any], group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Return what enters the kept layer, what it should put out, (blocks, tokens, hidden) both, and its errors so far.

    They stay on the CPU, in the dense model's dtype: two numbers for each token and hidden unit are kept.
    """
    dtype = next(pruned.dense.parameters()).dtype
    inputs, targets, errors = [], [], []
    for ids in pruned.blocks.split(pruned.batch):
        entering, leaving = states_at(pruned.model, group.place, ids)
        _, wanted = states_at(pruned.dense, group.members[-1], ids)
        inputs.append(entering.to("cpu", dtype))
        targets.append(wanted.to("cpu", dtype))
        for mine, its in zip(leaving, wanted, strict=True):
            errors.append(state_mismatch(mine, its))
    return torch.cat(inputs), torch.cat(targets), torch.stack(errors)


@contextmanager
def in_float32(layer: nn.Module) -> Iterator[None]:
    """Hold a layer's weights in float32 for a while; buffers, such as those of positions, stay as they are."""
    kept = [(weight, weight.dtype) for weight in layer.parameters()]
    try:
        for weight, _ in kept:
            weight.data = weight.data.float()
        yield
    finally:
        for weight, dtype in kept:
            weight.data = weight.data.to(dtype)


def normal_equations(features: int, hidden: int) -> int:
    """Return the floating-point operations of one token's part in the sums of `elder.compensation.linear`."""
    return flops.PASS * features * (features + hidden)


def share_of(layer: nn.Module, model: Any) -> float:
    """Return a layer's share of the parameters that a token passes: those of all layers and of the head."""
    return flops.size(layer) / flops.passed(model)


def passed(pruned: Pruned[Any], group: Group) -> int:
    """Return how many parameters of layers a token passes while the states of a group are collected."""
    mine = find_layers(pruned.model)[: group.place + 1]
    its = find_layers(pruned.dense)[: group.members[-1] + 1]
    return sum(map(flops.size, [*mine, *its]))
