"""One run of the flow: what it was started with, and where everything lies in its folder. Tasks are handed this."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from elder.files import write_json, write_text
from elder.params import Params
from elder.secrecy import without_secrets
from tasks.errors import plain_errors

PARAMS, START = "params.yaml", "start.json"
# keys of the section evaluate; the run's copies are named so
TEXTS = ("in_domain", "out_of_domain")


@dataclass(frozen=True)
class Run:
    """One run and its folder.

    Attributes:
        root: the project's folder, with dvc.yaml.
        folder: the run's own, below ``runs/``; its name is the run's id.
        settings: all parameters, as the user gave them: an address in them may hold a password.
        method: name of the recipe.
        source: local folder or Hub id that ``model.name`` stands for.
        revision: commit of a Hub model: a branch may move while the run goes on.
    """

    root: Path
    folder: Path
    settings: Params
    method: str
    source: str
    revision: str | None

    @property
    def run_id(self) -> str:
        """Return the run's id."""
        return self.folder.name

    @property
    def pinned(self) -> Params:
        """Return the parameters with the model that was found for ``model.name``."""
        place: dict[str, str | None] = {"name": self.source, "revision": self.revision}
        model = self.settings.model.model_copy(update=place)
        return self.settings.model_copy(update={"model": model})

    @property
    def for_stages(self) -> Params:
        """Return the parameters of the stages: with the model that was found, and the run's own texts."""
        texts = {name: str(self.data / f"{name}.txt") for name in TEXTS}
        evaluate = self.settings.evaluate.model_copy(update=texts)
        return self.pinned.model_copy(update={"evaluate": evaluate})

    @property
    def data(self) -> Path:
        """Return the folder of the run's own copy of the data."""
        return self.folder / "data"

    @property
    def blocks(self) -> Path:
        """Return the file of the calibration blocks."""
        return self.data / "calibration.safetensors"

    @property
    def stage_params(self) -> Path:
        """Return the file of the parameters that the stages read."""
        return self.folder / "stages.yaml"

    @property
    def work(self) -> Path:
        """Return the work folder of the compression's stages."""
        return self.folder / "work"

    @property
    def model(self) -> Path:
        """Return the folder of the shallower model, whatever its registered name is."""
        return self.folder / "model"

    @property
    def energy(self) -> Path:
        """Return the file that counts the energy of all attempts."""
        return self.folder / "energy.json"

    @property
    def record(self) -> Path:
        """Return the file of the record, of which the model folder and MLflow get copies."""
        return self.folder / "record.json"

    @property
    def report(self) -> Path:
        """Return the file of the report."""
        return self.folder / "report.html"

    def result(self, name: str) -> Path:
        """Return the file that a measurement writes its result to: dense, candidate or speed."""
        return self.folder / f"{name}.json"

    def baseline(self, name: str) -> Path:
        """Return the folder of a baseline."""
        return self.folder / "baselines" / name


def write_start(run: Run) -> None:
    """Write down what a run was started with, without secrets: one that goes on gets them anew, as it was started."""
    start = {
        "root": str(run.root),
        "method": run.method,
        "source": run.source,
        "revision": run.revision,
    }
    with plain_errors(run.folder):
        _write_params(run.settings, run.folder / PARAMS)
        write_json(run.folder / START, start)


def write_stage_params(run: Run) -> None:
    """Write the parameters of the stages, without secrets."""
    _write_params(run.for_stages, run.stage_params)


def _write_params(settings: Params, path: Path) -> None:
    tree = without_secrets(settings.model_dump(mode="json"))
    write_text(path, yaml.safe_dump(tree, sort_keys=False))
