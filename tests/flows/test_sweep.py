"""A grid of runs: which cells there are, which are refused before any work, which are not done again."""

import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner, Result

from elder.errors import UserError
from elder.params import Params
from elder.record import Record
from elder.settings import load_params
from flows import sweep
from flows.cli.app import build_app
from tasks.record_file import write_record
from tasks.run import folder as rundir
from tests.elder.records import make_record

GRID = "method: [default, sleb]\nselect.ratio: [0.25, 0.5]\n"


class Runs:
    """Stands for the main flow: remembers what it was asked for, and leaves a finished run's folder behind."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, int | None]] = []
        self.created = "2000-01-01T00:00:00+00:00"
        self.failing: BaseException | None = None
        self.fails_at = 0

    def __call__(self, settings: Params, root: Path, method: str) -> Record:
        self.asked.append((method, settings.select.ratio, settings.select.layers))
        if self.failing and len(self.asked) == self.fails_at:
            raise self.failing
        key = rundir.run_key(settings, method)
        folder = root / "runs" / f"{len(self.asked):03d}-{key}-000000"
        whole = make_record()
        for row, value in zip(
            whole["rows"], (4.0, 4.0 + settings.select.ratio), strict=False
        ):
            row["perplexity"]["out_of_domain"]["perplexity"] = value
        record = Record.model_validate(
            whole
            | {
                "run_id": folder.name,
                "created": self.created,
                "model_version": str(len(self.asked)),
                "gate": {"mode": "on", "passed": method == "default", "rules": []},
                "report": "report.html",
            }
        )
        folder.mkdir(parents=True)
        write_record(record, folder / "record.json")
        rundir.close_run(folder, record)
        return record


@pytest.fixture
def runs(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Work in a folder with the project's files and no runs of earlier tests."""
    for name in ("data", "models", "params.yaml", "dvc.yaml"):
        (tmp_path / name).symlink_to(project / name)
    monkeypatch.chdir(tmp_path)
    # To make a database takes seconds.
    monkeypatch.setattr("tasks.registry.client.Registry", Mock())
    made = Runs()
    monkeypatch.setattr(sweep, "run_compression", made)
    return made


def start(grid: str, *arguments: str) -> Result:
    Path("grid.yaml").write_text(grid)
    return CliRunner().invoke(build_app(), ["sweep", "grid.yaml", "--json", *arguments])


def rows(found: Result) -> list[dict[str, Any]]:
    assert found.stdout.count("\n") == 1
    return json.loads(found.stdout)["runs"]


def test_every_combination_is_a_run_of_its_own(runs: Runs) -> None:
    found = start(GRID)
    assert found.exit_code == 0, found.output
    # the file's order, its last key fastest; the ratio counts though the project's params.yaml says layers: 1
    assert runs.asked == [
        ("default", 0.25, None),
        ("default", 0.5, None),
        ("sleb", 0.25, None),
        ("sleb", 0.5, None),
    ]
    first, *_, last = rows(found)
    assert first["cell"] == {"method": "default", "select.ratio": 0.25}
    assert first["perplexity"] == {"dense": 4.0, "pruned": 4.25}
    assert (first["version"], first["gate_passed"], last["gate_passed"]) == (
        "1",
        True,
        False,
    )
    assert len({row["run_id"] for row in rows(found)}) == 4


def test_people_get_a_table(runs: Runs) -> None:
    found = CliRunner().invoke(
        build_app(), ["sweep", str(_write("select.ratio: [0.5]\n"))]
    )
    head, line = found.stdout.splitlines()
    assert head.split() == ["select.ratio", "dense", "pruned", "gate", "version", "run"]
    assert line.split()[:5] == ["0.5", "4.00", "4.50", "passed", "1"]


def test_done_cells_are_not_run_again_until_that_is_asked_for(runs: Runs) -> None:
    before = rows(start(GRID))
    more = rows(start(GRID.replace("0.5]", "0.5, 0.7]")))
    assert runs.asked[4:] == [("default", 0.7, None), ("sleb", 0.7, None)]
    assert [row for row in more if row["cell"]["select.ratio"] != 0.7] == before


def test_an_interrupted_repetition_goes_on(runs: Runs) -> None:
    start(GRID)
    runs.created = "2100-01-01T00:00:00+00:00"  # later than the second round begins
    runs.failing, runs.fails_at = KeyboardInterrupt(), 4 + 3
    assert start(GRID, "--again").exit_code == 2
    assert len(runs.asked) == 4 + 3  # two cells done, the third interrupted
    assert list(Path("runs").glob(".sweep-*"))
    found = start(GRID, "--again")
    assert found.exit_code == 0
    assert len(runs.asked) == 4 + 3 + 2
    assert [row["version"] for row in rows(found)] == ["5", "6", "8", "9"]
    assert not list(Path("runs").glob(".sweep-*"))  # the next repetition is a new round


def test_a_grid_takes_the_settings_of_a_method_and_words_as_they_stand(
    tmp_path: Path,
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("select.elder.lambda1: [0.1, 0.2]\ngate.mode: [off, on]\n")
    cells = sweep.read_cells(file, None)
    made = [load_params(None, list(cell.overrides)) for cell in cells]
    found = [(one.select.settings_of("elder").lambda1, one.gate.mode) for one in made]
    assert found == [(0.1, "off"), (0.1, "on"), (0.2, "off"), (0.2, "on")]
    file.write_text("gate.mode: [off]\ngate.mode: [on]\n")
    with pytest.raises(UserError, match="the key 'gate.mode' is given twice"):
        sweep.read_cells(file, None)


def test_a_failing_cell_does_not_stop_the_others(runs: Runs) -> None:
    runs.failing, runs.fails_at = RuntimeError("stage learn was killed by signal 9"), 2
    found = start(GRID)
    assert found.exit_code == 1
    assert [row["error"] for row in rows(found)] == [
        None,
        "RuntimeError: stage learn was killed by signal 9",
        None,
        None,
    ]
    assert "Traceback" not in found.stderr


def test_a_scheduled_sweep_says_what_became_of_it(runs: Runs) -> None:
    _write(GRID)
    state = sweep.sweep.fn("grid.yaml")
    assert (state.name, state.message) == ("Completed", "2 of 4 cells passed the gate")
    runs.failing, runs.fails_at = RuntimeError("the disk broke"), 5
    _write("select.ratio: [0.7]\n")
    state = sweep.sweep.fn("grid.yaml")
    assert state.name == "Failed"
    assert (
        state.message
        == "1 of 1 cells failed: select.ratio=0.7: RuntimeError: the disk broke"
    )


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (
            "select.ratoi: [0.5]",
            r"cell 1 of 1 \(select.ratoi=0.5\) cannot run.*\n.*did you mean 'ratio'",
        ),
        ("selcet.ratio: [0.5]", "did you mean 'select'"),
        (
            "methdo: [sleb]",
            "'methdo' in 'grid.yaml' is neither 'method' nor section.key; did you mean 'method'",
        ),
        (
            "method: [default, sleeb]",
            r"cell 2 of 2 \(method=sleeb\).*did you mean 'sleb'",
        ),
        ("select.ratio: [0.25, 1.5]", "cell 2 of 2.*\n.*should be less than 1"),
        (
            "select.layers: [1, 4]",
            "cell 2 of 2.*layers 4 of 4 layers cannot be removed",
        ),
        ("evaluate.tasks: [[], [blimpp]]", "cell 2 of 2.*did you mean 'blimp'"),
        (
            "select.ratio: 0.5",
            "select.ratio in 'grid.yaml' must be a list of values",
        ),
        ("select.ratio: []", "must be a list of values"),
        ("- method", "must hold keys with lists of values"),
        ("", "must hold keys with lists of values"),
        ("a: [", "'grid.yaml' is not valid YAML"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(
    runs: Runs, grid: str, said: str
) -> None:
    found = start(grid)
    assert (found.exit_code, found.stdout) == (2, "")
    assert re.search(said, found.stderr), found.stderr
    assert runs.asked == []
    assert not Path("runs").exists()


def test_a_missing_grid_is_named(runs: Runs) -> None:
    found = CliRunner().invoke(build_app(), ["sweep", "absent.yaml"])
    assert found.exit_code == 2
    assert "there is no sweep file 'absent.yaml'" in found.stderr


def test_the_weekly_sweep_is_a_grid() -> None:
    cells = sweep.read_cells(Path(__file__).parents[2] / "flows" / "weekly.yaml", None)
    assert {cell.method for cell in cells} == {"default"}
    assert all(0 < cell.values["select.ratio"] < 1 for cell in cells)


def _write(grid: str) -> Path:
    path = Path("grid.yaml")
    path.write_text(grid)
    return path
