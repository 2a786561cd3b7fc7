"""What a recovery is given and what it returns, the training that all share, and the catalogue by name."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from elder import params
from elder.params.catalogue import RECOVERIES, Catalogue
from elder.record import Spent
from elder.training.data import TrainingData
from elder.training.loop import LossFunction, TrainingRun
from elder.training.ready import compiled
from elder.training.tune import Objective, Tuning, grids_of, tuning

S = TypeVar("S")  # the settings that a recovery is registered with
# token ids (batch, seq_len) -> what enters the dense model's head, (batch, seq_len, hidden)
States = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Student(Generic[S]):
    """A shallower model that is about to learn, as a recovery finds it.

    Attributes:
        model: the model after removal, weights in float32.
        dense: the model before, frozen; None for a recovery whose settings do not ask for it.
        removed: layers of the dense model that the shallower one lacks.
        settings: the recovery's own.
        states: what the dense model makes of the blocks, where that is known: its layers need not be there then.
    """

    model: Any
    dense: Any
    removed: tuple[int, ...]
    settings: S
    states: States | None = None


Recovery = Callable[[Student[Any]], LossFunction]  # what is minimised on a batch
CATALOGUE: Catalogue[Recovery] = RECOVERIES
register = CATALOGUE.register


def student_of(
    settings: params.Recover,
    model: Any,
    dense: Any,
    removed: Sequence[int] = (),
    states: States | None = None,
) -> Student[Any]:
    """Return a model as the recovery that the section ``recover`` names will find it.

    Raises:
        UserError: for an unknown recovery.
    """
    own = settings.settings_of(settings.mode)
    return Student(model, dense, tuple(removed), own, states)


def recover(
    student: Student[Any],
    data: TrainingData,
    settings: params.Recover,
    run: TrainingRun,
) -> Spent:
    """Train the shallower model, in place: trials, where anything is ``auto``, and the run; as `recovering`."""
    with recovering(student, data, settings, run) as made:
        return made.whole()


@contextmanager
def recovering(
    student: Student[Any],
    data: TrainingData,
    settings: params.Recover,
    run: TrainingRun,
) -> Iterator[Tuning]:
    """Make the shallower model ready to learn.

    Args:
        student: the model, and what it learns from.
        data: calibration blocks, and those that the dense model wrote; an epoch is a pass over as many blocks as there
            are of calibration text, whatever stands beside them.
        settings: the section ``recover``; its ``mode`` says by which recovery.
        run: what it runs with.

    Raises:
        UserError: for an unknown recovery, or one that this model cannot do.
    """
    loss = CATALOGUE.find(settings.mode).function(student)
    budget = settings.epochs * data.calibration_blocks
    stretched = settings.model_copy(update={"epochs": budget / len(data.blocks)})
    grids = grids_of(settings, student.model)
    objective = Objective(loss_with=lambda _: loss, grids=grids)
    with (
        compiled(student.dense, settings.compile and student.dense is not None),
        tuning(student.model, data, stretched, objective, run) as made,
    ):
        yield made
