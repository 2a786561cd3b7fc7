"""Ghost: the unconstrained least-squares map at each cut, as far as an ordinary checkpoint can hold one.

Ghosted Layers (arXiv 2605.15491) puts a matrix of its own at each cut, which adds the missing state as a linear
function of the whole state h before it: h + h G, with G of least squares under no constraint. No stock checkpoint can
hold it there: what reads the stream reads it through a norm, which a general matrix does not pass, and the stream
itself flows on beside every layer. So this file, in its own reading, takes the least squares over all that a stock
checkpoint can hold at the cut: the last projection of the layer before it, W, which reads the features x of that
layer's MLP. With h what that layer puts out and t the dense state after the layers that went, D minimises

    sum over calibration tokens of || h + x D - t ||^2 + lambda || D ||^2

and W + D is the new projection (its bias takes part, where there is one). `linear` (ReplaceMe) is the constrained case
D = W (T - 1): it can only mix what the projection writes already, by a map of (hidden, hidden). Here every feature may
write anything: (features, hidden). Gaps are closed from the first to the last, each with the states of the model
compensated so far.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from elder.compensation.base import Gap, Pruned, find_gaps, register
from elder.compensation.linear import Moments, Site, find_site, refuse_without_site
from elder.compensation.states import states_at
from elder.model.layers import find_layers
from elder.params import Section
from elder.progress import say
from elder.record import Json
from elder.training.search import hold_out


class GhostSettings(Section):
    """What the least-squares map depends on."""

    ridge: float = Field(
        0.1, gt=0, description="pull of the change towards none, in mean squares"
    )


@register(
    "ghost",
    settings=GhostSettings,
    paper="arXiv 2605.15491",
    check=refuse_without_site,
)
def ghost(pruned: Pruned[GhostSettings]) -> dict[str, Json]:
    """Change the last projection before each gap, where that lowers the error on held-out blocks.

    Returns:
        {gaps: [{removed, into, folded, held_out_error: {before, after}}], tokens}; the error is ||h + x D - t||^2 /
        ||t||^2. ``into`` counts layers of the dense model; None where no kept layer comes before.

    Raises:
        UserError: for a family whose layers do not end with one linear projection that adds to the residual stream.
    """
    gaps = find_gaps(pruned.removed, len(find_layers(pruned.dense)))
    first = pruned.blocks[:1]
    sites = {
        gap: find_site(pruned.model, gap.place - 1, first) for gap in gaps if gap.place
    }
    records: list[Json] = []
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


def close(pruned: Pruned[GhostSettings], gap: Gap, site: Site) -> dict[str, Json]:
    """Solve for one cut's map, judge it on held-out blocks, and fold it in if it helps."""
    cut = Cut(pruned.model, pruned.dense, gap, site)
    fit, held = (cut.moments(part, pruned.batch) for part in hold_out(pruned.blocks))
    change = solve(fit, pruned.settings.ridge)
    error = {
        "before": held.error(torch.zeros_like(change)),
        "after": held.error(change),
    }
    folded = error["after"] < error["before"]
    if folded:
        add(site.module, change)
    say(
        f"least-squares map for {', '.join(map(str, gap.layers))}: held-out error {error['before']:.4f} to "
        f"{error['after']:.4f}, {'folded' if folded else 'left out'}"
    )
    return {"folded": folded, "held_out_error": error}


@dataclass(frozen=True)
class Cut:
    """Where layers went.

    Attributes:
        model: the shallower model, compensated so far.
        dense: the model before.
        gap: the layers that went.
        site: the last projection of the layer before them.
    """

    model: Any
    dense: Any
    gap: Gap
    site: Site

    @torch.no_grad()
    def moments(self, blocks: Tensor, batch: int) -> Moments:
        """Return the normal equations: A = sum x'x, B = sum x'(t - h), the sums of (t - h)^2 and t^2; float64.

        A bias counts as one more feature, which is 1 for every token.
        """

        def leaving(ids: Tensor) -> Tensor:
            return states_at(self.model, self.site.index, ids)[1]

        def batches() -> Iterator[tuple[Tensor, ...]]:
            for ids in blocks.split(batch):
                _, after = states_at(self.dense, self.gap.stop - 1, ids)
                yield lacking(self.site, leaving, ids, after)

        return Moments.of(batches())


def lacking(
    site: Site, run: Callable[[Tensor], Tensor], given: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the features that a projection reads, what is lacking after it, and the wanted state: one row a token.

    Features come times the gain with which the layer adds what the projection puts out.

    Args:
        site: the projection, with which its layer ends.
        run: runs that layer on what is given, and returns what leaves it.
        given: to it.
        wanted: what should leave it, (batch, tokens, hidden).
    """
    seen: list[Tensor] = []
    hook = site.module.register_forward_pre_hook(
        lambda _, given: seen.append(given[0].clone())
    )
    try:
        leaving = run(given)
    finally:
        hook.remove()
    h, t = (one.double().flatten(0, -2) for one in (leaving, wanted))
    x = seen[0].double().reshape(len(h), -1)
    if site.module.bias is not None:
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    return site.gain * x, t - h, t


def solve(sums: Moments, ridge: float) -> Tensor:
    """Return D, (features, hidden) float64, of least squares drawn towards 0.

    Args:
        sums: the normal equations.
        ridge: strength, relative to the mean diagonal of A.
    """
    strength = max(
        ridge * sums.a.diagonal().mean().item(), torch.finfo(torch.float64).tiny
    )
    return torch.linalg.solve(
        sums.a + strength * torch.eye(len(sums.a)).to(sums.a), sums.b
    )


@torch.no_grad()
def add(module: Any, change: Tensor) -> None:
    """Add D, (features, hidden), to a projection; computed in float64, kept in the weight's own dtype."""
    # (features, hidden); Conv1D keeps it so
    weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
    if module.bias is not None:
        module.bias.copy_(module.bias.double() + change[-1])
        change = change[:-1]
    weight.copy_(weight.double() + change)
