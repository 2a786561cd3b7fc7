"""Train a model with one section's settings: choose what is ``auto`` on held-out blocks, then run, within one budget.

The budget is ``epochs`` passes over the calibration blocks. Where anything is ``auto``, a share of it goes to short
trials, each from the same weights; the rest, what trials that were not needed left included, goes to the final run, on
all blocks. With Muon, what is best for a short run is too much for a long one: a learning rate that was found is
lowered by the known power of the steps. AdamW's is not, where the optimiser was chosen: there trials prefer too low a
rate rather than too high a one (docs/recipe.md).

Where the optimiser is ``auto``, all other values are tried with AdamW first, then Muon with those that won, which suit
both: rates are relative. All combinations would leave each trial too few steps to tell anything. Where the model's
weights say that Adam trained it, Muon is not tried: it wins short trials there, and loses the run
(`elder.training.optim`). The final run goes on from the weights that the best trial ended with: what
that trial learnt was paid for.

`tune` does it all. `try_out` and `run_with` do the two halves, for what comes between: a compensation, which is worth
its price only before a run with AdamW.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from elder import params
from elder.device import device_of_model
from elder.errors import UserError
from elder.model.forward import block_losses
from elder.record import Spent
from elder.training.checkpoint import Schedule
from elder.training.data import TrainingData
from elder.training.loop import LossFunction, TrainingRun, train
from elder.training.micro_batch import MicroBatch, blocks_to_learn
from elder.training.optim import OPTIMIZERS, optimizers_for
from elder.training.ready import checkpointing, compiled, trainable
from elder.training.search import (
    Order,
    Snapshot,
    Values,
    downhill,
    every,
    in_words,
    search,
)

OPTIMIZER = "optimizer"
# relative to the root mean square of each weight
LR_GRID = (0.00125, 0.0025, 0.005, 0.01)
# where the optimiser is named: as before there was a choice, so that what was made then can be made again
LR_GRID_OF_NAMED = (0.005, 0.01, 0.02)
# absolute: adapters start at 0, and a share of that is nothing
ADAPTER_LR_GRID = (3e-4, 1e-3, 3e-3)
SEARCH_SHARE = 0.2  # of the budget, for all trials together
LONGER_RUN = 0.32  # the best learning rate of Muon falls with the steps to this power (arXiv 2409.19913)
Grids = Mapping[str, tuple[Any, ...]]  # {name of a value that is ``auto``: what to try}


@dataclass(frozen=True)
class Objective:
    """What a training minimises, and which of its values are chosen by trial.

    Attributes:
        loss_with: builds the loss of a batch from the chosen values: whatever ``grids`` names.
        grids: candidates for each value that is ``auto``, ``optimizer`` and ``lr`` among them where they are.
        judge: held-out blocks -> loss in nats, for a trial; by default the next-token loss.
    """

    loss_with: Callable[[Values], LossFunction]
    grids: Grids = field(default_factory=dict)
    judge: Callable[[torch.Tensor], float] | None = None

    def first(self) -> list[Values]:
        """Return what is tried first: all combinations with the first optimiser; an empty one without grids."""
        grids = dict(self.grids)
        if OPTIMIZER in grids:
            grids[OPTIMIZER] = grids[OPTIMIZER][:1]
        combinations = itertools.product(*grids.values())
        return [dict(zip(grids, values, strict=True)) for values in combinations]

    def then(self, best: Values) -> list[Values]:
        """Return what is tried after that: the other optimisers with the values that won."""
        others = self.grids.get(OPTIMIZER, ())[1:]
        return [{**best, OPTIMIZER: other} for other in others]

    @property
    def order(self) -> Order:
        """Return the order of the first: rates alone are tried from the middle on, to where less is lost."""
        return downhill if set(self.grids) == {OPTIMIZER, "lr"} else every

    def trials(self) -> int:
        """Return how many trials share the part of the budget that is theirs; there may be fewer."""
        return len(self.first()) + len(self.grids.get(OPTIMIZER, ())[1:])


@dataclass(frozen=True)
class Tried:
    """What trials came to.

    Attributes:
        values: that won; empty where nothing was tried.
        spent: what all trials took.
        goes_on: the model's weights are now those that the best trial ended with.
    """

    values: Values = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    goes_on: bool = False


def tune(
    model: Any,
    data: TrainingData,
    settings: params.Training,
    objective: Objective,
    run: TrainingRun,
) -> Spent:
    """Train in place.

    Args:
        model: weights in float32.
        data: blocks to learn from, and those that judge trials.
        settings: epochs, batch, learning rate or ``auto``, and the rest.
        objective: what is minimised, and what is tried.
        run: what the final run runs with; trials keep no checkpoint.

    Returns:
        What was spent, search included.

    Raises:
        UserError: if the loss does not stay finite, or the model cannot do what is asked.
    """
    with tuning(model, data, settings, objective, run) as made:
        return made.whole()


@contextmanager
def tuning(
    model: Any,
    data: TrainingData,
    settings: params.Training,
    objective: Objective,
    run: TrainingRun,
) -> Iterator["Tuning"]:
    """Make a model ready to train, as `tune` has it; at the end adapters are part of its weights."""
    thrifty = checkpointing(model) if settings.gradient_checkpointing else nullcontext()
    # the trials' and the run's
    at_once = run.micro_batch or micro_batch_of(model, data, settings, run.label)
    run = replace(run, micro_batch=at_once)
    with (
        trainable(model, settings.adapter_rank, run.seed) as trained,
        thrifty,
        compiled(trained, settings.compile),
    ):
        yield Tuning(trained, data, settings, objective, run)


@dataclass(frozen=True)
class Tuning:
    """The short runs that choose what is ``auto``, and the run that follows them.

    Attributes:
        model: what trains, adapters included.
        data: blocks to learn from, and those that judge.
        settings: of the stage.
        objective: what is minimised, and what is tried.
        run: what the final run runs with.
    """

    model: Any
    data: TrainingData
    settings: params.Training
    objective: Objective
    run: TrainingRun

    def whole(self) -> Spent:
        """Run the trials and what follows them; returns what both took."""
        tried = self.try_out()
        spent = self.run_with(tried)
        spent.tokens_seen += tried.spent.tokens_seen
        spent.optimizer_steps += tried.spent.optimizer_steps
        spent.search = tried.spent.search
        return spent

    def try_out(self) -> Tried:
        """Run the trials, if there are any.

        The model's weights are then those that the best trial ended with, where it chose the optimiser, too; but what
        they were before where the training steers the model step by step, which begins anew.
        """
        first, trials = self.objective.first(), self.objective.trials()
        if trials == 1:
            return Tried(values=first[0])
        goes_on = self._optimizer_is_chosen and self.run.at_step is None
        lowest = math.inf
        work = self.run.checkpoint.parent if self.run.checkpoint else None
        with TemporaryDirectory(prefix="trials-", dir=work) as folder:
            start = ahead = Snapshot(self.model, Path(folder, "start"))

            def try_one(values: Values) -> tuple[float, Spent]:
                nonlocal ahead, lowest
                start.restore(self.model)
                loss, spent = self.trial(values, trials)
                if goes_on and math.isfinite(loss) and loss < lowest:
                    ahead, lowest = Snapshot(self.model, Path(folder, "ahead")), loss
                return loss, spent

            objective = self.objective
            chosen, spent = search(
                self.run.label, first, try_one, objective.then, objective.order
            )
            ahead.restore(self.model)
        return Tried(chosen, spent, goes_on)

    def run_with(self, tried: Tried, paid: int = 0) -> Spent:
        """Train with what was chosen.

        Args:
            tried: what the trials came to.
            paid: tokens of the budget that went elsewhere.

        Returns:
            What this run took.

        Raises:
            UserError: if the loss does not stay finite.
        """
        schedule = self.schedule_after(tried, paid)
        loss = self.objective.loss_with(tried.values)
        spent = train(self.model, self.data.blocks, loss, schedule, self.run)
        if not math.isfinite(spent.curve[-1].loss):
            raise UserError(
                f"{self.run.label} diverged with a learning rate of {schedule.lr:g}: set {self.run.label}.lr lower"
            )
        spent.tokens_generated = self.data.tokens_written
        return spent

    def schedule_after(self, tried: Tried, paid: int = 0) -> Schedule:
        """Return the schedule of the final run; the arguments are those of `run_with`."""
        chosen, searched = tried.values, tried.spent.optimizer_steps
        searched_lr = bool(searched) and "lr" in chosen
        count, share = len(self.data.blocks), 1.0
        if searched and not self._optimizer_is_chosen:
            # what was made before there was that choice can be made again
            share, searched = 1 - SEARCH_SHARE, 0
        whole = self.schedule(chosen, self.settings.epochs * share, count)
        elsewhere = math.ceil(paid / (whole.batch * self.data.blocks.shape[1]))
        left = max(1, whole.steps - searched - elsewhere)
        longer = replace(whole, steps=left)
        if searched_lr and chosen.get(OPTIMIZER) != "adamw":
            short = self.trial_schedule(chosen, self.objective.trials())
            rate = longer.lr * lowered(short.steps, longer.steps)
            longer = replace(longer, lr=rate)
        return longer

    @property
    def _optimizer_is_chosen(self) -> bool:
        return OPTIMIZER in self.objective.grids

    def trial(self, values: Values, trials: int) -> tuple[float, Spent]:
        """Train briefly from the present weights; returns the held-out loss, and what it took."""
        run = replace(
            self.run,
            label=f"{self.run.label}, trying {in_words(values)}",
            checkpoint=None,
        )
        loss = self.objective.loss_with(values)
        schedule = self.trial_schedule(values, trials)
        spent = train(self.model, self.data.fit, loss, schedule, run)
        return self.held_out_loss(), spent

    def held_out_loss(self) -> float:
        """Return the loss on the held-out blocks, in nats."""
        held = self.data.held_out
        if self.objective.judge:
            return self.objective.judge(held)
        at_once = self.run.micro_batch
        assert at_once is not None  # as `tuning` leaves it
        losses = at_once.attempt(
            partial(block_losses, self.model, held, compute=self.run.compute)
        )
        return losses.mean().item()

    def trial_schedule(self, values: Values, trials: int) -> Schedule:
        """Return the schedule of one of ``trials`` trials, which share a part of the budget."""
        fit = len(self.data.fit)
        epochs = (
            self.settings.epochs * SEARCH_SHARE / trials * len(self.data.blocks) / fit
        )
        return self.schedule(values, epochs, fit)

    def schedule(self, values: Values, epochs: float, count: int) -> Schedule:
        """Return the schedule of ``epochs`` passes over ``count`` blocks."""
        settings = self.settings
        searched = "lr" in values
        named = "adamw" if settings.adapter_rank else settings.optimizer
        optimizer = values.get(OPTIMIZER, named)
        return Schedule(
            steps=max(1, int(epochs * count / settings.batch)),  # never over the budget
            batch=settings.batch,
            optimizer="adamw" if optimizer == "auto" else optimizer,
            lr=values["lr"] if searched else float(settings.lr),
            relative=searched and not settings.adapter_rank,
            warmup=settings.warmup,
            weight_decay=settings.weight_decay,
            seed=self.run.seed,
        )


def micro_batch_of(
    model: Any, data: TrainingData, settings: params.Training, label: str
) -> MicroBatch:
    """Return how many blocks a stage's training begins with at once."""
    on_cpu = device_of_model(model).type == "cpu"
    size = blocks_to_learn(settings, data.blocks.shape[1], on_cpu)
    return MicroBatch(label, size)


def lowered(trial: int, steps: int) -> float:
    """Return the factor on a learning rate found in a trial of ``trial`` steps, for a run of ``steps``."""
    return min(1.0, (trial / steps) ** LONGER_RUN)


def grids_of(
    settings: params.Training, model: nn.Module | None = None
) -> dict[str, tuple[Any, ...]]:
    """Return the optimisers and learning rates to try, none where a rate is given: it was meant for one optimiser.

    Args:
        settings: of the training.
        model: that will train; None: the most that any may need.
    """
    if settings.lr != "auto":
        return {}
    chosen = settings.optimizer == "auto"
    rates = LR_GRID if chosen else LR_GRID_OF_NAMED
    grid = {"lr": ADAPTER_LR_GRID if settings.adapter_rank else rates}
    if not chosen:
        return grid
    suitable = OPTIMIZERS
    # adapters suit either, whatever trained the model (arXiv 2605.10468)
    if model is not None and not settings.adapter_rank:
        suitable = optimizers_for(model)
    return {OPTIMIZER: suitable} | grid
