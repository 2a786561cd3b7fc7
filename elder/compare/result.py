"""What was measured of one row or of the dense model, and the files that hold it.

rows/NAME.json     the numbers; its presence is the mark of completion
rows/NAME.npz      the loss of each evaluation block, for paired tests
"""

import math
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import ConfigDict, Field

from elder.compare.plan import Measurement
from elder.files import read_json, whole_file, write_json
from elder.record import Budget, Json, Mean, Number, Perplexity, TaskResult, plain

Losses = dict[str, np.ndarray]  # {domain: (blocks,)}, in nats


class Result(Budget):
    """The numbers of one measurement.

    Attributes:
        name: of the row; files do not hold it, since rows that mean the same share one.
        losses: {domain: the loss of each block in nats, (blocks,) float64}.
        calibration: the text that was calibrated on.
        seed: of the blocks and of all training.
        removed: which layers went, in order; none of the dense model.
        num_layers: of the dense model.
        tokens: of the calibration blocks.
        parameters: of the model that was measured.
        perplexity: {domain: perplexity}.
        tasks: {name: result}.
        task_mean: mean over the tasks; None without any.
        recipe: the sections of the parameters that say how it was made.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str = Field("", exclude=True)
    losses: Losses = Field(default_factory=dict, exclude=True)
    calibration: str
    seed: int
    removed: list[int]
    num_layers: int
    tokens: int = 0
    search: list[Json] = Field(default_factory=list)
    parameters: int
    perplexity: dict[str, Perplexity]
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    task_mean: Mean | None = None
    protocol: dict[str, Json] = Field(default_factory=dict)
    evaluation_seconds: Number = 0
    model: str = ""
    recipe: dict[str, Json] = Field(default_factory=dict)
    environment: dict[str, Json] = Field(default_factory=dict)

    @property
    def compensated(self) -> bool:
        """Say whether what was removed was made up for without training."""
        section = self.recipe.get("compensate") or {}
        return section.get("method", "none") != "none"


def write_result(one: Measurement, folder: Path, result: Result) -> None:
    """Write what was measured: the losses first, since the numbers mark completion."""
    path = one.path(folder)
    arrays = {
        domain: values.astype(np.float32) for domain, values in result.losses.items()
    }
    with whole_file(path.with_suffix(".npz")) as new, new.open("wb") as handle:
        np.savez_compressed(handle, **cast(dict[str, Json], arrays))
    write_json(path, plain(result))


def read_result(one: Measurement, folder: Path) -> Result:
    """Return what was measured, under the row's name."""
    path = one.path(folder)
    with np.load(path.with_suffix(".npz")) as arrays:
        losses = {domain: arrays[domain].astype(np.float64) for domain in arrays.files}
    return Result.model_validate(read_json(path) | {"name": one.row, "losses": losses})


def value_of(measured: Perplexity) -> float:
    """Return a perplexity; infinity where there is none, of a model that is utterly broken."""
    return math.inf if measured.perplexity is None else measured.perplexity


def nll_of(measured: Perplexity) -> float:
    """Return the mean loss in nats; infinity where there is none."""
    return math.inf if measured.nll is None else measured.nll
