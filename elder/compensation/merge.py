"""Merging, LaCo (arXiv 2402.11187): the layers that went are folded into the kept one before them, by their weights.

    theta_l + sum_k (theta_{l+k} - theta_l)      over the layers l+1..l+m that went right after the kept layer l

It looks at no data, and takes any selection; with the selection ``laco`` it is that paper's method.
"""

import torch

from elder.compensation.base import Pruned, find_gaps, register
from elder.errors import UserError
from elder.model.layers import find_layers
from elder.params.catalogue import NoSettings
from elder.record import Json
from elder.selection.laco import merged_weights


@register("merge", paper="arXiv 2402.11187")
@torch.no_grad()
def merge(pruned: Pruned[NoSettings]) -> dict[str, Json]:
    """Fold each run of removed layers into the kept layer before it.

    Returns:
        {gaps: [{removed, into}], tokens: 0}; ``into`` counts layers of the dense model, and is None where no kept
        layer comes before: such layers are just gone.

    Raises:
        UserError: where layers of a run have other weights than the one they would go into.
    """
    layers, kept = find_layers(pruned.dense), find_layers(pruned.model)
    weights = [dict(layer.named_parameters()) for layer in layers]
    shapes = [
        {name: weight.shape for name, weight in layer.items()} for layer in weights
    ]
    gaps = find_gaps(pruned.removed, len(layers))
    for gap in gaps:
        if not gap.place:
            continue
        before = gap.start - 1
        for index in gap.layers:
            if shapes[index] != shapes[before]:
                raise UserError(
                    f"layer {index} cannot be merged into layer {before}: their weights differ in name or "
                    f"shape; set compensate.method to none, or protect one of them"
                )
    records: list[Json] = []
    for gap in gaps:
        into = gap.start - 1 if gap.place else None
        records.append({"removed": gap.layers, "into": into})
        if into is None:
            continue
        gone = [weights[index] for index in gap.layers]
        merged = merged_weights(weights[into], gone)
        target = kept[gap.place - 1]
        for name, parameter in target.named_parameters():
            parameter.copy_(merged[name])
    return {
        "gaps": records,
        "tokens": 0,
    }
