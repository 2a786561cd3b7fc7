"""ELDeR, stage 1 (arXiv 2505.18232, also TRSP): learn a weight for each layer, then drop the lightest.

All model weights are frozen. Each layer alive has one scalar weight S_i, 1 at the start of a round; a round minimises

    LM(W, X) + lambda1 * sum_i |S_i|        over S alone,

LM being the mean next-token cross-entropy over all positions. Iterative: one round for each layer that goes, those
selected before being bypassed. One-shot: a single round, and the lightest layers go together.

As published, the lightest layer of a round goes. With a ``shortlist``, this project's own addition, the lightest few
are taken out in turn, forward only, and the one that is missed the least goes: few steps order the weights only
roughly, and SLEB's check on a few layers costs a fraction of its check on all. As there, the first and the last layer
are not among them: a model can bear their being scaled, and not their being gone. Of ``runners_up``, the layers missed
the least in the round before, none is lost because few steps overrate its weight; the first round tries all. All are
tried on text that the dense model writes (``written``), which shows what a layer does beyond the calibration text, too:
the loss there, less the dense model's own, estimates the divergence from that model. With ``racing`` layers leave
before all blocks are seen: see `trials`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from elder.data import batch_indices
from elder.device import device_of_model
from elder.model.finite import refuse_not_finite
from elder.model.forward import block_losses, next_token_losses
from elder.model.layers import LayerControl, find_layers, skipping
from elder.parallel.ranks import total
from elder.parallel.shard import shares, summed
from elder.params import Auto, Section, Strength
from elder.params.catalogue import Recipe
from elder.progress import Meter, meter, say
from elder.record import Spent
from elder.selection.base import Problem, Round, Selection, lowest, offered, register
from elder.selection.trials import Trials
from elder.training.search import hold_out, search

MOST_WRITTEN = 32  # blocks (docs/recipe.md)
# the published value, and those at which |S| and the loss begin to balance
LAMBDA1_GRID = (0.005, 0.05, 0.2)


class LayerWeightSettings(Section):
    """What the learning of layer weights depends on."""

    place: Literal["residual", "output"] = Field(
        "residual", description="what a layer weight scales"
    )
    solver: Literal["proximal", "subgradient"] = Field(
        "proximal", description="how |S| is minimised"
    )
    iterative: bool = Field(
        True, description="learn the weights anew for each removed layer"
    )
    lambda1: Strength | Auto = Field(
        0.05, description="strength of |S|; auto: chosen on held-out blocks"
    )
    lr: float = Field(0.05, gt=0, description="learning rate of the layer weights")
    epochs: float = Field(
        0.3, gt=0, description="passes over the calibration blocks, all rounds together"
    )
    batch: int = Field(
        1, ge=1, description="blocks in a batch where weights are learnt"
    )
    shortlist: int = Field(
        2,
        ge=1,
        description="lightest layers of which the least missed goes; 1: the lightest",
    )
    runners_up: int = Field(
        8,
        ge=0,
        description="beside them, those missed the least in the round before, and in the first round all; 0: none",
    )
    written: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="blocks that the dense model writes to try them on; 0: calibration; auto: 32 at most, 0 offloaded",
    )
    racing: float | None = Field(
        0.95,
        ge=0.5,
        lt=1,
        description="of these, one leaves once it loses with this confidence; null: all see all blocks",
    )

    @property
    def tries(self) -> bool:
        """Say whether layers of a shortlist are tried, round by round."""
        return self.iterative and self.shortlist > 1

    def blocks_written(self, blocks: int) -> int:
        """Return how many blocks the model writes to try layers on, beside so many of calibration."""
        if not self.tries:
            return 0
        return min(MOST_WRITTEN, blocks) if self.written == "auto" else self.written


# lambda1, lambda2, and the learning rate, warm-up and epochs of stage 2: the paper's, for LLaMA2-7B. How long stage 1
# learns is not among them: here as long as stage 2
AS_PUBLISHED: Recipe = {
    "select": {
        "elder": {
            "place": "output",
            "lambda1": 5e-3,
            "iterative": True,
            "shortlist": 1,
            "epochs": 3,
            "batch": 4,
        }
    },
    "regularise": {
        "anneal": 0.0,
        "optimizer": "adamw",
        "epochs": 3,
        "lr": 2e-5,
        "lambda2": 1e-3,
        "norm": "l2",
        "relative": False,
        "warmup": 0.03,
        "weight_decay": 0.0,
    },
}


@register(
    "elder",
    settings=LayerWeightSettings,
    recipe=AS_PUBLISHED,
    paper="arXiv 2505.18232",
    divided=True,
)
def select(problem: Problem[LayerWeightSettings]) -> Selection:
    """Choose layers by learnt weights.

    With ``lambda1: auto`` the choice that loses least on held-out blocks wins; all trials together stay within
    ``epochs``.
    """
    wanted, written = problem.settings.lambda1, write(problem)
    chosen = (
        learn_by_trial(problem, written)
        if wanted == "auto"
        else learn(problem, problem.blocks, written, wanted)
    )
    generated = 0 if written is None else written.numel()
    return replace(chosen, tokens_generated=generated)


def write(problem: Problem[LayerWeightSettings]) -> torch.Tensor | None:
    """Let the model write what shortlisted layers are tried on, (blocks, seq_len) int64; None where nothing is."""
    count = problem.settings.blocks_written(len(problem.blocks))
    return problem.write(count) if count and problem.write else None


def learn_by_trial(
    problem: Problem[LayerWeightSettings], written: torch.Tensor | None
) -> Selection:
    """Learn layer weights with each lambda1 of the grid; return the choice that loses least on held-out blocks."""
    fit, held = hold_out(problem.blocks)
    share = problem.settings.model_copy(
        update={"epochs": problem.settings.epochs / len(LAMBDA1_GRID)}
    )
    problem = replace(problem, settings=share)
    selections: dict[float, Selection] = {}

    def trial(values: dict[str, float]) -> tuple[float, Spent]:
        selection = selections[values["lambda1"]] = learn(
            problem, fit, written, values["lambda1"]
        )
        with skipping(problem.model, selection.removed):
            loss = (
                block_losses(problem.model, held, problem.forward_batch).mean().item()
            )
        spent = Spent(
            tokens_seen=selection.tokens_seen, optimizer_steps=selection.optimizer_steps
        )
        return loss, spent

    chosen, spent = search(
        "select", [{"lambda1": value} for value in LAMBDA1_GRID], trial
    )
    return replace(
        selections[chosen["lambda1"]],
        tokens_seen=spent.tokens_seen,
        optimizer_steps=spent.optimizer_steps,
        search=tuple(spent.search),
    )


def learn(
    problem: Problem[LayerWeightSettings],
    blocks: torch.Tensor,
    written: torch.Tensor | None,
    lambda1: float,
) -> Selection:
    """Learn layer weights with one lambda1, in as many rounds as the settings ask for.

    Args:
        problem: its blocks are not looked at.
        blocks: that the weights are learnt on.
        written: that layers are tried on; None: ``blocks``.
        lambda1: strength of |S|.
    """
    layers = find_layers(problem.model)
    settings = problem.settings
    rounds_wanted = problem.count if settings.iterative else 1
    passes = settings.epochs / rounds_wanted
    steps = max(1, int(passes * len(blocks) / settings.batch))  # never over the budget
    rounds: list[Round] = []
    gone: set[int] = set()
    problem.model.requires_grad_(False)
    label = f"layer weights, lambda1 {lambda1:g}"
    with LayerControl(layers) as control, meter(label, rounds_wanted * steps) as step:
        control.place = settings.place
        text = blocks if written is None else written
        trials = Trials(problem, control, text, settings.racing)
        for number in range(rounds_wanted):
            alive = offered(problem, len(layers), gone)
            control.bypassed = gone
            seed = problem.seed + number
            weights = learn_round(problem, control, blocks, lambda1, steps, seed, step)
            values = [
                weight if index in alive else None
                for index, weight in enumerate(weights.abs().tolist())
            ]
            chosen = choose(problem, trials, values, gone, rounds)
            gone = gone | set(chosen.removed)
            rounds.append(chosen)
    if trials.run and settings.racing:
        say(f"elder, shortlists: {trials.told()}")
    taken = rounds_wanted * steps
    return Selection(
        removed=tuple(index for one in rounds for index in one.removed),
        score="layer weight",
        rounds=tuple(rounds),
        tokens_seen=taken * settings.batch * blocks.shape[1],
        optimizer_steps=taken,
        learnt=True,
    )


def choose(
    problem: Problem[LayerWeightSettings],
    trials: Trials,
    values: list[float | None],
    gone: set[int],
    before: Sequence[Round],
) -> Round:
    """Return a round: the lightest layer goes, or of the shortlist the one missed the least; in one shot, all go.

    Args:
        problem: the problem.
        trials: try a shortlist.
        values: the weight of each layer, None where it may not go.
        gone: layers that went before.
        before: the rounds so far.
    """
    settings = problem.settings
    removed = lowest(values, 1 if settings.iterative else problem.count)
    if not settings.tries:
        return Round(removed, tuple(values))
    lost = dict(before[-1].checked) if before else {}
    tried = trials(shortlist(settings, values, lost) or removed, gone, len(gone))
    checked = tuple(tried.losses.items())
    return Round((tried.least_missed,), tuple(values), checked, tried.run)


def shortlist(
    settings: LayerWeightSettings,
    values: Sequence[float | None],
    lost: Mapping[int, float],
) -> list[int]:
    """Return the layers that are tried: those missed the least in the round before, and the lightest of the others.

    Where there are runners-up, the first round tries all: what it passes over few later rounds would find.

    Args:
        settings: how many.
        values: the weight of each layer, None where it may not go.
        lost: {layer tried in the round before: loss without it}; empty in the first.
    """
    others = [None, *values[1:-1], None]
    if settings.runners_up and not lost:
        return list(lowest(others, len(others)))
    ascending = sorted(lost, key=lost.__getitem__)
    alive = [layer for layer in ascending if values[layer] is not None]
    again = alive[: settings.runners_up]
    for layer in again:
        others[layer] = None
    return [*again, *lowest(others, settings.shortlist)]


def learn_round(
    problem: Problem[LayerWeightSettings],
    control: LayerControl,
    blocks: torch.Tensor,
    lambda1: float,
    steps: int,
    seed: int,
    step: Meter,
) -> torch.Tensor:
    """Learn the layer weights of one round from 1; returns (L,) float32 on the CPU."""
    device = device_of_model(problem.model)
    weights = torch.ones(len(control.layers), device=device, requires_grad=True)
    solver = LayerWeightSolver(
        weights,
        problem.settings.lr,
        lambda1,
        proximal=problem.settings.solver == "proximal",
    )
    control.weights = weights
    for number in range(steps):
        ids = blocks[batch_indices(len(blocks), problem.settings.batch, number, seed)]
        loss, gradient = pull(problem, ids, weights)
        solver.step(gradient)
        refuse_not_finite(loss, "the loss from which layer weights are learnt")
        step(f"loss {loss:.3f}")
    control.weights = None
    return weights.detach().cpu()


def pull(
    problem: Problem[LayerWeightSettings], ids: torch.Tensor, weights: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Return the mean loss of a batch, and its gradient by the layer weights; ``forward_batch`` blocks at once."""
    loss, gradient = 0.0, torch.zeros_like(weights)
    for piece, share in shares(ids, problem.forward_batch):
        part = next_token_losses(problem.model, piece).mean() * share
        gradient += torch.autograd.grad(part, weights)[0]
        loss += part.item()
    return total(loss), summed(gradient)


class LayerWeightSolver:
    """Adam on the loss, with |S| as a soft threshold after each step (proximal) or as a subgradient within it.

    In the proximal form each weight's threshold is its own step size times lambda1, so that both forms have the same
    fixed points; only the proximal one can reach exactly 0. Adam divides by the size of the loss's gradient alone; here
    lambda1 is added to it, so that no threshold exceeds ``lr``, however little the loss feels a weight.
    """

    def __init__(
        self, weights: torch.Tensor, lr: float, lambda1: float, proximal: bool
    ) -> None:
        self.weights, self.lr, self.lambda1, self.proximal = (
            weights,
            lr,
            lambda1,
            proximal,
        )
        self.mean = torch.zeros_like(weights)
        self.square = torch.zeros_like(weights)
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """Take one step along the gradient of the loss with respect to the weights, (L,)."""
        if not self.proximal:
            gradient = gradient + self.lambda1 * self.weights.sign()
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        scale = (self.square / (1 - 0.999**self.steps)).sqrt() + 1e-8
        size = self.lr / (scale + self.lambda1 if self.proximal else scale)
        self.weights.sub_(size * self.mean / (1 - 0.9**self.steps))
        if self.proximal:
            self.weights.copy_(soft_threshold(self.weights, size * self.lambda1))


def soft_threshold(
    values: torch.Tensor, threshold: torch.Tensor | float
) -> torch.Tensor:
    """Return sign(x) max(|x| - t, 0), the proximal operator of t |x|."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)
