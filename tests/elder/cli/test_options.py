"""Options are declared once, in groups; Typer sees each of them, the command gets the groups."""

from dataclasses import dataclass
from inspect import signature
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from elder.cli.app import build_app
from elder.cli.options import with_options
from elder.cli.services import LIBRARY

COMMON = ["--params", "--set", "--json", "--help"]
PLACE = ["--device", "--dtype"]
SELECTION = ["--layers", "--ratio", "--calibration", "--samples", "--seq-len", "--seed"]
OPTIONS = {  # scripts of others depend on these
    "select": ["--method", *SELECTION, *PLACE, *COMMON],
    "compress": [
        "--output",
        "--method",
        "--compensate",
        "--recover",
        *SELECTION,
        *PLACE,
        "--max-memory",
        *COMMON,
    ],
    "evaluate": [
        "--text",
        "--seq-len",
        "--tasks",
        "--task-data",
        "--limit",
        *PLACE,
        *COMMON,
    ],
    "bench": ["--against", *PLACE, *COMMON],
    "compare": [
        "--methods",
        "--model",
        "--ratios",
        "--layers",
        "--seeds",
        "--calibrations",
        "--task-data",
        "--budget",
        "--preset",
        "--output",
        *COMMON,
    ],
}


@dataclass(frozen=True)
class Speech:
    text: Annotated[str, typer.Option(help="What is said.")]
    times: int = 1


def test_a_group_is_spelt_out_for_typer_and_put_together_for_the_command() -> None:
    heard = []

    def command(name: str, speech: Speech, *, loud: bool = False) -> None:
        heard.append((name, speech, loud))

    spelt_out = with_options(command)
    assert list(signature(spelt_out).parameters) == ["name", "text", "times", "loud"]
    app = typer.Typer()
    app.command()(spelt_out)
    done = CliRunner().invoke(app, ["anna", "--times", "3", "--text", "well", "--loud"])
    assert done.exit_code == 0, done.output
    assert heard == [("anna", Speech("well", 3), True)]
    assert CliRunner().invoke(app, ["anna"]).exit_code == 2  # the text has no default


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_of_a_command_and_their_order(name: str) -> None:
    group = typer.main.get_command(build_app(LIBRARY))
    command = group.commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, [], resilient_parsing=True) as context:
        listed = [parameter.opts[0] for parameter in command.get_params(context)]
    assert [option for option in listed if option.startswith("--")] == OPTIONS[name]
