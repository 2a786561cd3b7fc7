"""LaCo (arXiv 2402.11187): rear layers collapse into an earlier one, as long as the model still ends in a like state.

Layers l+1..l+m collapse into l by theta_l + sum_k (theta_{l+k} - theta_l). From the top of a range of layers down, C
layers at a time become one; a merge stands if the last hidden state stays similar to the dense model's, above a
threshold; after a merge the next is tried I layers lower, else one layer lower. The threshold is searched so that
exactly the wanted number of layers goes.

Every difference is taken against the original theta_l. Where a merge takes in a layer that has taken in others before
(I < C), all of these collapse into l by the one sum: so the merged model follows from the removed layers alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from elder.errors import UserError
from elder.model.finite import refuse_not_finite
from elder.model.forward import run_layers
from elder.model.layers import LayerControl, find_layers
from elder.params import Section
from elder.progress import say
from elder.selection.base import Problem, Round, Selection, offered, register

Merge = tuple[
    tuple[int, ...], float
]  # the layers that it takes in, and the similarity after it


class LacoSettings(Section):
    """What a walk down the layers depends on."""

    merge_layers: int = Field(
        4, ge=2, description="layers that become one in a merge, C"
    )
    merge_range: tuple[int, int] | None = Field(
        None, description="merges stay within [L, H); null: [1, layers)"
    )
    merge_interval: int = Field(
        2, ge=1, description="how far below a merge the next is tried, I"
    )
    merge_samples: int = Field(
        16, ge=1, description="calibration blocks that judge a merge"
    )


@register(
    "laco",
    settings=LacoSettings,
    recipe={"compensate": {"method": "merge"}},
    paper="arXiv 2402.11187",
)
def select(problem: Problem[LacoSettings]) -> Selection:
    """Collapse layers from the top down; a round is a merge, its value 1 - the similarity after it.

    A protected layer is never taken in, but may take in others. The first layer has none before it, so it stays. Where
    even a threshold below all similarities leaves too many layers, C is lowered, and with it I and last L.
    """
    layers = find_layers(problem.model)
    offered(replace(problem, protected=problem.protected | {0}), len(layers))
    shapes = [
        {name: weight.shape for name, weight in layer.named_parameters()}
        for layer in layers
    ]

    def fits(base: int, index: int) -> bool:
        return index not in problem.protected and shapes[index] == shapes[base]

    walk = reachable(problem.settings, len(layers), fits, problem.count)
    with torch.no_grad(), LayerControl(layers) as control:
        merges = search_threshold(
            walk, fits, problem.count, Similarity(problem, control)
        )
    rounds = []
    for taken, value in merges:
        values = tuple(
            1 - value if index in taken else None for index in range(len(layers))
        )
        rounds.append(Round(taken, values))
    removed = tuple(index for taken, _ in merges for index in taken)
    return Selection(removed, "1 - similarity after the merge", tuple(rounds))


def merged_weights(
    base: Mapping[str, torch.Tensor], others: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return theta_l + sum_k (theta_{l+k} - theta_l), summed in float32 and given back in the dtype of ``base``.

    Args:
        base: the parameters of layer l by name, of any shapes.
        others: those of the layers that collapse into it, of the same names and shapes.
    """
    merged = {}
    for name, weight in base.items():
        start = weight.detach().float()
        total = start.clone()
        for other in others:
            total += other[name].detach().to(start.device).float() - start
        merged[name] = total.to(weight.dtype)
    return merged


def runs(removed: frozenset[int]) -> dict[int, list[int]]:
    """Return {kept layer: the removed layers right after it}, all in ascending order."""
    by_base: dict[int, list[int]] = {}
    base = -1
    for index in sorted(removed):
        if index - 1 not in removed:
            base = index - 1
        by_base.setdefault(base, []).append(index)
    return by_base


@contextmanager
def collapsed(control: LayerControl, removed: frozenset[int]) -> Iterator[None]:
    """Run the model as if ``removed`` had collapsed into the layers before; then its own tensors are in place again."""
    layers = control.layers
    originals: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        for base, others in runs(removed).items():
            own = dict(layers[base].named_parameters())
            merged = merged_weights(
                own, [dict(layers[index].named_parameters()) for index in others]
            )
            for name, parameter in own.items():
                originals.append((parameter, parameter.data))
                parameter.data = merged[name]
        control.bypassed = set(removed)
        yield
    finally:
        control.bypassed = set()
        for parameter, data in originals:
            parameter.data = data


class Similarity:
    """The mean cosine of the collapsed model's last hidden state with the dense model's, each set computed once.

    It is taken at the last token of each of the first ``merge_samples`` blocks, before the final norm.
    """

    def __init__(self, problem: Problem[LacoSettings], control: LayerControl) -> None:
        self.problem, self.control = problem, control
        self.known: dict[frozenset[int], float] = {}
        self.dense = self._last_states()
        largest = self.dense.abs().max().item()
        refuse_not_finite(largest, "the largest value of the dense model's last states")

    def __call__(self, removed: frozenset[int]) -> float:
        """Return the similarity with ``removed`` collapsed; -1 where the state is not finite."""
        if removed not in self.known:
            with collapsed(self.control, removed):
                cosine = F.cosine_similarity(self.dense, self._last_states(), dim=-1)
            self.known[removed] = cosine.mean().nan_to_num(-1.0).item()
        return self.known[removed]

    def _last_states(self) -> torch.Tensor:
        """Return the last token's hidden state after the last layer, (blocks, hidden) float64 on the CPU."""
        states: list[torch.Tensor] = []
        last = len(self.control.layers) - 1

        def keep(index: int, _: torch.Tensor, leaving: torch.Tensor) -> None:
            if index == last:
                states.append(leaving[:, -1].double().cpu())

        self.control.observe = keep
        judged = self.problem.blocks[: self.problem.settings.merge_samples]
        for ids in judged.split(self.problem.forward_batch):
            run_layers(self.problem.model, ids)
        self.control.observe = None
        return torch.cat(states)


@dataclass(frozen=True)
class Walk:
    """How one walk down the layers goes.

    Attributes:
        merge: C, layers that become one.
        lowest: L, no layer below takes in others.
        highest: H, layers from here on are left alone.
        interval: I, how far below a merge the next is tried.
    """

    merge: int
    lowest: int
    highest: int
    interval: int


def collapse(
    walk: Walk,
    fits: Callable[[int, int], bool],
    wanted: int,
    similarity: Callable[[frozenset[int]], float],
    threshold: float,
) -> list[Merge]:
    """Walk down the layers once; return the merges that stood.

    Args:
        walk: C, L, H and I.
        fits: whether a layer (first) may take in another (second).
        wanted: how many layers go; the last merge takes in fewer than C - 1 where fewer are left to go.
        similarity: of the model with some layers collapsed to the dense one.
        threshold: a merge stands if the similarity after it is above.
    """
    alive = list(range(walk.highest))
    gone: frozenset[int] = frozenset()
    merges: list[Merge] = []
    at = walk.highest - walk.merge
    while at >= walk.lowest and len(gone) < wanted:
        taken: list[int] = []
        for index in alive[at + 1 : at + 1 + min(walk.merge - 1, wanted - len(gone))]:
            if not fits(alive[at], index):
                break
            taken.append(index)
        value = similarity(gone.union(taken)) if taken else -float("inf")
        if value > threshold:
            gone = gone.union(taken)
            merges.append((tuple(taken), value))
            alive = [index for index in alive if index not in gone]
            at = min(at - walk.interval, len(alive) - walk.merge)
        else:
            at -= 1
    return merges


def search_threshold(
    walk: Walk, fits: Callable[[int, int], bool], wanted: int, similarity: Similarity
) -> list[Merge]:
    """Return the merges of a walk that takes out ``wanted`` layers, by bisection over the similarities seen.

    The threshold that is found cannot be raised past the next similarity seen without too few layers going.
    """
    low, high = -float("inf"), float("inf")
    best = collapse(walk, fits, wanted, similarity, low)
    while between := sorted(
        value for value in set(similarity.known.values()) if low < value < high
    ):
        threshold = between[len(between) // 2]
        merges = collapse(walk, fits, wanted, similarity, threshold)
        say(
            f"laco: threshold {threshold:.4f} takes out {removes(merges)} of {wanted} layers"
        )
        if removes(merges) == wanted:
            low, best = threshold, merges
        else:
            high = threshold
    return best


def removes(merges: list[Merge]) -> int:
    """Return how many layers the merges take out."""
    return sum(len(taken) for taken, _ in merges)


def reachable(
    settings: LacoSettings, count: int, fits: Callable[[int, int], bool], wanted: int
) -> Walk:
    """Return the walk of the settings, or the nearest with a lower C, I and L that can take out ``wanted`` layers.

    Raises:
        UserError: if no walk within the range can.
    """
    merge, interval = settings.merge_layers, settings.merge_interval
    lowest, highest = settings.merge_range or (1, count)
    if not 0 <= lowest < highest <= count:
        raise UserError(
            f"select.laco.merge_range [{lowest}, {highest}] does not fit {count} layers; give [L, H] with "
            f"0 <= L < H <= {count}, or null for [1, {count}]"
        )
    walks = [Walk(merge, lowest, highest, interval)]
    walks += [
        Walk(fewer, lowest, highest, min(interval, fewer - 1))
        for fewer in range(merge - 1, 1, -1)
    ]
    if settings.merge_range is None:
        walks.append(Walk(2, 0, highest, 1))
    for walk in walks:
        if removes(collapse(walk, fits, wanted, lambda _: 1.0, 0.0)) == wanted:
            if walk != walks[0]:
                say(
                    f"laco: {merge} layers at a time, interval {interval}, cannot take out {wanted} of {count}; it "
                    f"goes on with {walk.merge} at a time, interval {walk.interval}, down to layer {walk.lowest}"
                )
            return walk
    raise UserError(
        f"laco cannot take out {wanted} of {count} layers by merges within [{lowest}, {highest}); widen "
        "select.laco.merge_range, protect fewer layers or remove fewer"
    )
