"""Stage 1 of ELDeR as its authors' public code has it: github.com/fmk345/TRSP, commit 9fb3435, ``finetune.py``.

What it does otherwise than the paper's text (arXiv 2505.18232), which ``elder`` follows:

- The first three and the last four layers are no candidates (``alive_list_select = alive_list[3:-4]``, commented out
  there beside ``alive_list``, without which the script does not run).
- All weights of the model train together with the layer weights, at one rate of 2e-5: ``AdamW`` is given all of
  ``model.named_parameters()``. The paper freezes the model here.
- The layer weights go on from round to round; a round is an epoch, at whose end the lightest candidate is switched off.
- The loss is ``outputs.loss + 100 * l1_norm`` over the layers alive, candidates or not; ``--lambda_reg`` is not read.

A penalty of 100 drowns the gradient of the loss, and Adam divides by its size: all weights fall alike, to 0.99993 on
each candidate of the bundled LLaMA after three rounds, of two steps each, and of equals the first goes.

The weights that trained are dropped: stage 2 of that code begins with the dense model where it can be run, that is with
a ``removal_list`` written down: behind stage 1 in one process, its layers are off already and its rate is 0. The
scripts take 2,048 samples in steps of 1,024; here blocks and steps are the run's own. This file is written from reading
that code; none of it is copied.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import nn

from elder.data import batch_indices
from elder.model.finite import refuse_not_finite
from elder.model.forward import next_token_losses
from elder.model.layers import LayerControl, find_layers
from elder.params import Section, Strength
from elder.params.catalogue import Recipe
from elder.progress import Meter, meter
from elder.selection.base import Problem, Round, Selection, lowest, offered, register
from elder.training.checkpoint import Schedule
from elder.training.loop import rate


class AuthorsSettings(Section):
    """What the authors' stage 1 depends on."""

    first: int = Field(3, ge=0, description="layers at the front that never go")
    last: int = Field(4, ge=0, description="layers at the end that never go")
    lambda1: Strength = Field(100.0, description="strength of |S|")
    lr: float = Field(2e-5, gt=0, description="peak learning rate of all weights")
    epochs: float = Field(
        3.0, gt=0, description="passes over the calibration blocks, all rounds together"
    )
    batch: int = Field(4, ge=1, description="blocks in a batch")


# stage 2 of the same code: one layer an epoch, its ||f(h) - h|| over all 2,048 tokens of a sequence times 1e-4; that is
# 1e-4 times the root of 2,048 for each token
AS_IN_THE_CODE: Recipe = {
    "regularise": {
        "one_by_one": True,
        "anneal": 0.0,
        "optimizer": "adamw",
        "epochs": 3,
        "batch": 4,
        "lr": 2e-5,
        "lambda2": 4.5e-3,
        "norm": "l2",
        "relative": False,
        "warmup": 0.03,
        "weight_decay": 0.0,
    },
}


@register(
    "elder-authors",
    settings=AuthorsSettings,
    recipe=AS_IN_THE_CODE,
    paper="arXiv 2505.18232, github.com/fmk345/TRSP",
)
def select(problem: Problem[AuthorsSettings]) -> Selection:
    """Choose layers by weights that are learnt together with all weights of a copy of the model."""
    settings = problem.settings
    count = len(find_layers(problem.model))
    ends = {*range(settings.first), *range(count - settings.last, count)}
    problem = replace(problem, protected=problem.protected | ends)
    offered(problem, count)  # refuses before any work
    steps = max(
        problem.count, int(settings.epochs * len(problem.blocks) / settings.batch)
    )
    model = trainable_copy(problem.model)
    rounds: list[Round] = []
    with meter("layer and model weights", steps) as step:
        learner = Learner(model, problem, steps, step)
        for stop in [steps * (n + 1) // problem.count for n in range(problem.count)]:
            learner.train_to(stop)
            alive = offered(problem, count, learner.gone)
            values = learner.values(alive)
            removed = lowest(values, 1)
            learner.gone.update(removed)
            rounds.append(Round(removed, tuple(values)))
    return Selection(
        tuple(index for one in rounds for index in one.removed),
        "layer weight",
        tuple(rounds),
        steps * settings.batch * problem.blocks.shape[1],
        steps,
        learnt=True,
    )


class Learner:
    """Trains layer weights and model weights together; ``gone`` are the layers that are switched off.

    Args:
        model: trains.
        problem: blocks, settings, seed.
        steps: of all rounds.
        meter: shows them.
    """

    def __init__(
        self, model: Any, problem: Problem[AuthorsSettings], steps: int, meter: Meter
    ) -> None:
        self.model, self.problem, self.meter = model, problem, meter
        self.gone: set[int] = set()
        self.done = 0
        settings = problem.settings
        weights = torch.ones(len(find_layers(model)))
        self.weights = nn.Parameter(weights.to(next(model.parameters()).device))
        self.optimizer = torch.optim.AdamW(
            [*model.parameters(), self.weights], lr=settings.lr, weight_decay=0.0
        )
        self.schedule = Schedule(
            steps=steps,
            batch=settings.batch,
            optimizer="adamw",
            lr=settings.lr,
            relative=False,
            warmup=0.03,
            weight_decay=0.0,
            seed=problem.seed,
        )

    def train_to(self, stop: int) -> None:
        """Take steps until so many are taken in all."""
        with LayerControl(find_layers(self.model)) as control:
            control.place, control.weights = "output", self.weights
            control.bypassed = self.gone
            while self.done < stop:
                self.step()

    def step(self) -> None:
        """Take one step on the next-token loss and lambda1 times the sum of the weights of the layers alive."""
        blocks, schedule = self.problem.blocks, self.schedule
        rows = batch_indices(len(blocks), schedule.batch, self.done, schedule.seed)
        loss = next_token_losses(self.model, blocks[rows])
        alive = [i for i in range(len(self.weights)) if i not in self.gone]
        size = self.weights[alive].abs().sum()
        total = loss.mean() + self.problem.settings.lambda1 * size
        total.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.lr * rate(self.done, schedule)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        refuse_not_finite(
            loss.mean().item(), "the loss from which layer weights are learnt"
        )
        self.done += 1
        self.meter(f"loss {loss.mean().item():.3f}")

    def values(self, alive: Sequence[int]) -> list[float | None]:
        """Return the weight of each candidate, None of every other layer."""
        return [
            weight if index in alive else None
            for index, weight in enumerate(self.weights.tolist())
        ]


def trainable_copy(model: Any) -> Any:
    """Return a copy of a model with all weights in float32 and trainable; buffers stay as they are."""
    made = copy.deepcopy(model)
    for weight in made.parameters():
        weight.data = weight.data.float()
        weight.requires_grad_(True)
    return made
