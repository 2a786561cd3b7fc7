"""``elder sweep``: a grid of runs, each through the whole flow, in one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elder.cli.options import AsJson, ParameterOptions
from elder.cli.output import show
from elder.process import end_when_told
from flows.environment import prepare_environment, project_root

if TYPE_CHECKING:
    from flows.sweep import CellRow


def sweep(
    *,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="YAML: method and section.key, each with a list of values.",
        ),
    ],
    parameters: ParameterOptions,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Run done cells again too, after a change of data or code."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run every combination of the values in FILE through the whole flow; what is done is not done again."""
    root = project_root()
    prepare_environment()
    from flows.sweep import run_sweep

    end_when_told()
    rows = run_sweep(file, parameters.params, parameters.overrides, root, again)
    show({"runs": rows}, as_json, lambda: table(rows))
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


def table(rows: "Sequence[CellRow]") -> list[str]:
    """Return the rows as aligned lines: a column for each key of the grid, and what came out."""
    keys = list(rows[0]["cell"])
    lines = [[*keys, "dense", "pruned", "gate", "version", "run"]]
    for row in rows:
        line = [str(row["cell"][key]) for key in keys]
        ppl = row["perplexity"] or {"dense": None, "pruned": None}
        line += [_number(ppl["dense"]), _number(ppl["pruned"])]
        line += [
            _gate(row),
            row["version"] or "-",
            row["error"] or row["run_id"] or "-",
        ]
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _gate(row: "CellRow") -> str:
    if row["error"]:
        return "failed"
    return "passed" if row["gate_passed"] else "refused"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
