"""A grid of runs: read the file, check every cell, run those that are not done: here one after the other, or on Ray.

The file names values to combine; each combination is a cell, and one run of the main flow:

    method: [default, sleb]
    select.ratio: [0.17, 0.25]
"""

import itertools
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypedDict

from prefect import flow
from prefect.states import Completed, Failed, State

from elder.errors import UserError, nearest
from elder.files import write_json
from elder.fingerprint import Fingerprint
from elder.params import Params
from elder.params.strict_yaml import read_yaml
from elder.progress import say
from elder.record import Json, Record
from elder.secrecy import without_secrets
from elder.settings import DEFAULT
from flows.checks.doctor import require
from flows.cluster import refuse_cluster, spread
from flows.environment import prepare_environment, project_root
from flows.run import read_settings, run_compression, run_result, sentence
from tasks.provenance.keys import signer_if_any
from tasks.run.folder import finished_record
from tasks.run.marks import read_mark


class CellRow(TypedDict):
    """What became of a cell; ``error`` is None where it ran to its end, and all else where it did not."""

    cell: dict[str, Json]
    run_id: str | None
    version: str | None
    perplexity: dict[str, float | None] | None
    gate_passed: bool | None
    error: str | None


@dataclass(frozen=True)
class Cell:
    """One combination: what its run is started with. Plain values, so that it can be sent to another process."""

    values: dict[str, Json]  # as the file has them, without secrets
    method: str | None
    overrides: tuple[str, ...]  # of the command line and of the cell


def label(values: dict[str, Json]) -> str:
    """Write the values of a cell as a person would."""
    return ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    )


@flow(name="sweep")
def sweep(
    file: str,
    params: str | None = "params.yaml",
    overrides: list[str] | None = None,
    again: bool = False,
) -> State[list[CellRow]]:
    """Run a grid as `run_sweep` does; the state says what became of it, and is a failure if that of any cell was."""
    root = project_root()
    prepare_environment()
    rows = run_sweep(
        Path(file), Path(params) if params else None, overrides, root, again
    )
    failed = [f"{label(row['cell'])}: {row['error']}" for row in rows if row["error"]]
    if failed:
        message = f"{len(failed)} of {len(rows)} cells failed: {'; '.join(failed)}"
        return Failed(message=message, data=rows)
    passed = sum(bool(row["gate_passed"]) for row in rows)
    return Completed(
        message=f"{passed} of {len(rows)} cells passed the gate", data=rows
    )


def run_sweep(
    file: Path,
    params: Path | None,
    overrides: list[str] | None,
    root: Path,
    again: bool = False,
) -> list[CellRow]:
    """Run the cells of a grid that are not done, and return a row for each cell.

    A cell is done when a run with its parameters and method has finished here. A cell that fails does not stop the
    others; its row says why.

    Args:
        file: the grid.
        params: parameter file; None for params.yaml here.
        overrides: ``section.key=value`` that hold in all cells.
        root: the project's folder.
        again: run all cells again; if that was interrupted, those that it has not run yet.

    Raises:
        UserError: for whatever is wrong with the file or any cell, before anything runs.
    """
    cells = read_cells(file, overrides)
    first = _require_for_all(cells, params, root)
    key = Fingerprint({"cells": [asdict(cell) for cell in cells]}).short
    mark = root / "runs" / f".sweep-{key}.json"
    since = _round(mark) if again else ""
    if first.launch.ray is None:
        rows = []
        for number, cell in enumerate(cells, start=1):
            say(f"cell {number} of {len(cells)}: {label(cell.values)}")
            rows.append(run_cell(cell, params, root, since))
    else:
        rows = _on_cluster(cells, params, root, since, first)
    mark.unlink(missing_ok=True)
    return rows


def _on_cluster(
    cells: list[Cell], params: Path | None, root: Path, since: str, settings: Params
) -> list[CellRow]:
    """Run the cells on a Ray cluster; returns their rows, in order."""
    # one key, which whoever came first would make
    signer_if_any(settings.signing, root)
    rows: list[CellRow | None] = [None] * len(cells)

    def told(cell: Cell, row: CellRow | UserError) -> None:
        if isinstance(row, UserError):
            row = _failed_row(cell, str(row))
        rows[cells.index(cell)] = row
        say(f"{label(cell.values)}: {row['error'] or 'run ' + str(row['run_id'])}")

    function = partial(run_cell, params=params, root=root, since=since)
    spread(function, cells, told, settings, root)
    return [row for row in rows if row is not None]


def run_cell(cell: Cell, params: Path | None, root: Path, since: str = "") -> CellRow:
    """Run one cell, unless a run of the same was made at ``since`` or later; returns its row."""
    try:
        settings = read_settings(params, list(cell.overrides), cell.method)
        method = cell.method or DEFAULT
        record = finished_record(root, settings, method, since)
        if record is None:
            record = run_compression(settings, root, method)
        else:
            say(f"done by run {record.run_id}")
    except Exception as error:
        said = sentence(error)
        say(f"failed: {said}")
        return _failed_row(cell, said)
    return _finished_row(cell, record)


def _failed_row(cell: Cell, error: str) -> CellRow:
    return {
        "cell": cell.values,
        "run_id": None,
        "version": None,
        "perplexity": None,
        "gate_passed": None,
        "error": error,
    }


def _finished_row(cell: Cell, record: Record) -> CellRow:
    return {
        "cell": cell.values,
        "run_id": record.run_id,
        "version": record.model_version,
        "perplexity": run_result(record)["perplexity"],
        "gate_passed": record.gate.passed,
        "error": None,
    }


def _require_for_all(cells: list[Cell], params: Path | None, root: Path) -> Params:
    """Refuse the sweep if any cell could not run; returns the parameters of the first."""
    found: list[Params] = []
    for number, cell in enumerate(cells, start=1):
        try:
            settings = read_settings(params, list(cell.overrides), cell.method)
            require(settings, root)
            if settings.launch.ray is not None:
                refuse_cluster(settings)
            found.append(settings)
        except UserError as error:
            place = f"cell {number} of {len(cells)} ({label(cell.values)})"
            raise UserError(f"{place} cannot run: {error}") from None
    return found[0]


def read_cells(file: Path, overrides: list[str] | None) -> list[Cell]:
    """Read a grid and return its cells, the last key's values changing fastest."""
    grid = _read_grid(file)
    given = list(overrides or [])
    if "select.ratio" in grid and "select.layers" not in grid:
        given.append("select.layers=null")  # which would win over every ratio
    cells = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        own = [
            f"{key}={json.dumps(value)}"
            for key, value in values.items()
            if key != "method"
        ]
        shown = without_secrets(values)
        cells.append(Cell(shown, values.get("method"), (*given, *own)))
    return cells


def _read_grid(file: Path) -> dict[str, list[Json]]:
    tree = read_yaml(file, "sweep file", "give the path of a YAML file")
    if not isinstance(tree, dict) or not tree:
        raise UserError(
            f"{str(file)!r} must hold keys with lists of values, such as 'select.ratio: [0.17, 0.25]'"
        )
    grid: dict[str, list[Json]] = {str(key): values for key, values in tree.items()}
    for key, values in grid.items():
        section, dot, name = key.partition(".")
        if key != "method" and not (dot and name):
            hint = nearest(section, ["method", *Params.model_fields])
            raise UserError(
                f"{key!r} in {str(file)!r} is neither 'method' nor section.key; {hint}"
            )
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{key} in {str(file)!r} must be a list of values, such as [0.17, 0.25]"
            )
    return grid


def _round(mark: Path) -> str:
    """Return when the present round of a repeated sweep began: now, or earlier if that one was interrupted."""
    before = read_mark(mark)
    if before is not None:
        return str(before["since"])
    since = datetime.now(UTC).isoformat(timespec="seconds")
    mark.parent.mkdir(parents=True, exist_ok=True)
    write_json(mark, {"since": since})
    return since
