"""Linear compensation, ReplaceMe (arXiv 2505.02819): a linear map, solved by least squares, stands for removed layers.

The layer before a gap puts out r + m, where m is what its MLP writes and r the rest. With t the dense state after the
removed layers, T minimises

    sum over calibration tokens of || r + m T - t ||^2 + lambda || T - 1 ||^2

and is folded into the MLP's last projection, so that the checkpoint stays an ordinary one. Gaps are closed from the
first to the last, each with the states of the model compensated so far.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from elder.compensation.base import Gap, Pruned, find_gaps, register
from elder.compensation.states import states_at
from elder.errors import UserError
from elder.model.layers import find_layers
from elder.model.removal import layer_kind
from elder.params import Section
from elder.progress import say
from elder.record import Json
from elder.training.search import hold_out

PROBE = 64.0  # how much a projection's output is enlarged in the check: 16-bit rounding of the stream drowns in it
TOLERANCE = 0.05
SMALLEST_GAIN = 1e-3  # below, a norm after the projection has undone the enlargement


class LinearSettings(Section):
    """What the least-squares map depends on."""

    ridge: float = Field(
        0.1, gt=0, description="pull of the map towards the identity, in mean squares"
    )


@torch.no_grad()
def refuse_without_site(model: Any, ids: torch.Tensor) -> None:
    """Refuse a model with no layer that a map could be folded into, whichever layers go; one of each kind is tried.

    Raises:
        UserError: as `find_site`.
    """
    layers = find_layers(model)
    kinds: list[object] = []
    refusal: UserError | None = None
    for index, layer in enumerate(layers):
        kind = layer_kind(layer, index)
        if kind in kinds:
            continue
        kinds.append(kind)
        try:
            find_site(model, index, ids)
        except UserError as error:
            refusal = refusal or error
        else:
            return
    assert refusal is not None
    raise refusal


@register(
    "linear",
    settings=LinearSettings,
    paper="arXiv 2505.02819",
    check=refuse_without_site,
)
def linear(pruned: Pruned[LinearSettings]) -> dict[str, Json]:
    """Fold a linear map into the layer before each gap, where it lowers the error on held-out blocks.

    Returns:
        {gaps: [{removed, into, folded, held_out_error: {before, after}}], tokens}; the error is
        ||r + m T - t||^2 / ||t||^2. ``into`` counts layers of the dense model; None where no kept layer comes before.

    Raises:
        UserError: for a family whose MLP does not write to the residual stream last, by one linear projection.
    """
    gaps = find_gaps(pruned.removed, len(find_layers(pruned.dense)))
    sites = {
        gap: find_site(pruned.model, gap.place - 1, pruned.blocks[:1])
        for gap in gaps
        if gap.place
    }
    records = []
    for gap in gaps:
        record: dict[str, Json] = {
            "removed": gap.layers,
            "into": None,
            "folded": False,
            "held_out_error": None,
        }
        if gap in sites:
            record |= {"into": gap.start - 1} | close(pruned, gap, sites[gap])
        records.append(record)
    return {"gaps": records, "tokens": pruned.blocks.numel()}


@dataclass(frozen=True)
class Site:
    """Where a map can be folded: the projection ``module`` of layer ``index`` adds ``gain`` x its output."""

    index: int
    module: Any
    gain: float


@dataclass
class Moments:
    """The normal equations, float64: A = sum m'm, B = sum m'(t - r), and the sums of (t - r)^2 and t^2."""

    a: torch.Tensor
    b: torch.Tensor
    rest: float = 0.0
    target: float = 0.0

    @classmethod
    def of(cls, batches: Iterable[tuple[torch.Tensor, ...]]) -> "Moments":
        """Add up batches of features m, (tokens, features), of t - r and of t, (tokens, hidden), all float64."""
        sums: Moments | None = None
        for m, rest, target in batches:
            if sums is None:
                width = m.shape[1]
                sums = cls(m.new_zeros(width, width), m.new_zeros(width, rest.shape[1]))
            sums.a += m.T @ m
            sums.b += m.T @ rest
            sums.rest += rest.square().sum().item()
            sums.target += target.square().sum().item()
        assert sums is not None
        return sums

    def error(self, matrix: torch.Tensor) -> float:
        """Return ||r + m T - t||^2 / ||t||^2 of a map T, (hidden, hidden) float64."""
        squared = (matrix * (self.a @ matrix - 2 * self.b)).sum().item() + self.rest
        return squared / self.target


def close(pruned: Pruned[LinearSettings], gap: Gap, site: Site) -> dict[str, Json]:
    """Solve for one gap's map, judge it on held-out blocks, and fold it in if it helps."""
    fit, held = (moments(pruned, gap, site, part) for part in hold_out(pruned.blocks))
    matrix = solve(fit, pruned.settings.ridge)
    error = {
        "before": held.error(torch.eye(len(matrix)).to(matrix)),
        "after": held.error(matrix),
    }
    folded = error["after"] < error["before"]
    if folded:
        fold(site.module, matrix)
    layers = (
        f"layers {gap.start} to {gap.stop - 1}"
        if gap.stop - gap.start > 1
        else f"layer {gap.start}"
    )
    fate = "folded" if folded else "left out"
    say(
        f"linear map for {layers}: held-out error {error['before']:.4f} to {error['after']:.4f}, {fate}"
    )
    return {"folded": folded, "held_out_error": error}


@torch.no_grad()
def moments(
    pruned: Pruned[LinearSettings], gap: Gap, site: Site, blocks: torch.Tensor
) -> Moments:
    """Add up the normal equations batch by batch, so that no more than one batch of states is in memory."""

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        for ids in blocks.split(pruned.batch):
            # (tokens, hidden) each
            state, written = run_to(pruned.model, site.index, ids, site.module)
            target, _ = run_to(pruned.dense, gap.stop - 1, ids)
            m = site.gain * written
            yield m, target - (state - m), target

    return Moments.of(batches())


def solve(sums: Moments, ridge: float) -> torch.Tensor:
    """Return T, (hidden, hidden) float64, of least squares drawn towards the identity.

    Args:
        sums: the normal equations.
        ridge: strength, relative to the mean diagonal of A.
    """
    identity = torch.eye(len(sums.a)).to(sums.a)
    strength = max(
        ridge * sums.a.diagonal().mean().item(), torch.finfo(torch.float64).tiny
    )
    return torch.linalg.solve(
        sums.a + strength * identity, sums.b + strength * identity
    )


@torch.no_grad()
def fold(module: Any, matrix: torch.Tensor) -> None:
    """Make a projection put out y T in place of y; computed in float64, kept in the weight's own dtype."""
    # (in, out); Conv1D keeps it so
    weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
    weight.copy_(weight.double() @ matrix)
    if module.bias is not None:
        module.bias.copy_(module.bias.double() @ matrix)


def run_to(
    model: Any, index: int, ids: torch.Tensor, module: Any = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a model up to a layer; returns what the layer and a module in it put out, (tokens, features) float64 each.

    Without a module the layer's output is returned twice.
    """
    seen: list[torch.Tensor] = []
    hook = (
        module.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
        if module is not None
        else None
    )
    try:
        _, leaving = states_at(model, index, ids)
    finally:
        if hook is not None:
            hook.remove()
    written = seen[0] if seen else leaving
    return leaving.double().flatten(0, -2), written.double().flatten(0, -2)


@torch.no_grad()
def find_site(model: Any, index: int, ids: torch.Tensor) -> Site:
    """Find the projection that a layer ends with: the last to run of its modules that have weights.

    That its output is added to the rest is checked by enlarging it: the layer's output has to grow in line.

    Raises:
        UserError: if it is no linear projection, or does not.
    """
    module = last_to_run(model, index, ids)
    if isinstance(module, nn.Linear | Conv1D):
        plain, written = run_to(model, index, ids, module)
        hook = module.register_forward_hook(lambda _, __, output: PROBE * output)
        try:
            larger, _ = run_to(model, index, ids)
        finally:
            hook.remove()
        if written.shape == plain.shape:
            change = (larger - plain) / (PROBE - 1)
            gain = ((change * written).sum() / written.square().sum()).item()
            if (
                abs(gain) > SMALLEST_GAIN
                and (change - gain * written).norm()
                <= TOLERANCE * (gain * written).norm()
            ):
                return Site(index, module, gain)
    raise UserError(
        f"{type(model).__name__} cannot be compensated by a linear map: its layer {index} does not "
        f"end with one projection that adds to the residual stream; set compensate.method to none"
    )


def last_to_run(model: Any, index: int, ids: torch.Tensor) -> Any:
    """Return the module with weights of its own that ends last when a layer runs."""
    ended: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ended.append(module))
        for module in find_layers(model)[index].modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    run_to(model, index, ids)
    for hook in hooks:
        hook.remove()
    return ended[-1]
