"""The command line: how its failures end, its options, and how results are shown."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from elder.errors import UserError
from elder.progress import say


class PlainErrors(TyperGroup):
    """Commands whose failures end in one sentence: exit 2 for a wrong input or an interruption."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            refuse(f"error: {error}", 2)
        except KeyboardInterrupt:
            refuse(
                "interrupted: nothing was left half-written; the same command goes on from where it was",
                2,
            )
        except Exception as error:
            if "No space left on device" not in str(
                error
            ):  # safetensors wraps it in a type of its own
                raise
            refuse(
                "error: the disk is full; free some space and give the same command again", 2
            )


def refuse(sentence: str, status: int) -> NoReturn:
    """Say a sentence and exit; a stage leaves it to the flow that started it, which says it once."""
    if "ELDER_ERROR_FILE" in os.environ:
        Path(os.environ["ELDER_ERROR_FILE"]).write_text(
            sentence.removeprefix("error: "), encoding="utf-8"
        )
    else:
        say(sentence)
    sys.exit(status)


app = typer.Typer(
    cls=PlainErrors,
    help="Make large language models shallower: find the layers a model can do without, remove them, judge the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder, Hub id (owner/name@revision), s3:// prefix or models:/name@alias.",
    ),
]
ParamsFile = Annotated[
    Path | None,
    typer.Option("--params", help="Parameter file; params.yaml here, if there is one."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Override one parameter; repeatable."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")
]
SelectionMethod = Annotated[
    str | None,
    typer.Option(
        help="A method's own recipe, as published; by default the default recipe. A wrong name lists all."
    ),
]
Layers = Annotated[int | None, typer.Option(help="Remove exactly this many layers.")]
Ratio = Annotated[float | None, typer.Option(help="Remove round(ratio x layers) layers.")]
CalibrationFile = Annotated[
    Path | None, typer.Option("--calibration", help="Plain UTF-8 text to calibrate on.")
]
Samples = Annotated[int | None, typer.Option(help="Calibration blocks.")]
SeqLen = Annotated[
    int | None, typer.Option(help="Tokens in a block; by default 2048 or the model's context.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the blocks and of all training.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]


def show(result: dict[str, Any], as_json: bool, lines: Callable[[], list[str]]) -> None:
    """Print a result: one JSON object, or lines for people."""
    print(json.dumps(result, allow_nan=False) if as_json else "\n".join(lines()))
