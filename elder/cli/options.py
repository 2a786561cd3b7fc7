"""The options of the commands: each is declared once, in a group that every command with such options shares.

A command takes whole groups; `with_options` spells them out for Typer, one option a field.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import typer

from elder.errors import UserError
from elder.params import Params
from elder.params.section import SHORTEST
from elder.process import prepare_libraries
from elder.settings import DECISION, read_params

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Folder, GGUF file, Hub id (owner/name@revision), s3:// prefix or models:/name@alias.",
    ),
]
SelectionMethod = Annotated[
    str | None,
    typer.Option(
        help="A method's own recipe, as published; by default the default recipe. A wrong name lists all."
    ),
]
SeqLen = Annotated[
    int | None,
    typer.Option(
        min=SHORTEST, help="Tokens in a block; by default 2048 or the model's context."
    ),
]
TaskData = Annotated[
    Path | None, typer.Option(help="Folder of task definitions or of local datasets.")
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


@dataclass(frozen=True)
class ParameterOptions:
    """Where the parameters come from."""

    params: Annotated[
        Path | None,
        typer.Option(
            "--params", help="Parameter file; params.yaml here, if there is one."
        ),
    ] = None
    overrides: Overrides = None

    def settings(
        self, values: dict[str, Any] | None = None, method: str | None = None
    ) -> Params:
        """Read the parameters.

        Args:
            values: those of options with a name of their own, {"section.key": value}.
            method: whose recipe is laid over the parameter file.
        """
        prepare_libraries()  # reading them imports some
        return read_params(self.params, self.overrides, values or {}, method)

    def decision(self) -> Params:
        """Read what a decision on a registered model needs, and no more: that takes no second."""
        return read_params(self.params, self.overrides, {}, sections=DECISION)


@dataclass(frozen=True)
class CommonOptions(ParameterOptions):
    """Where the parameters come from, and how the result is shown."""

    as_json: AsJson = False


@dataclass(frozen=True)
class PlaceOptions:
    """Where a model computes, and in which dtype."""

    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = (
        None
    )
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16.")
    ] = None

    def values(self) -> dict[str, str | None]:
        """Return the parameters that these options stand for."""
        return {"model.device": self.device, "model.dtype": self.dtype}


@dataclass(frozen=True)
class MemoryOptions:
    """How much memory a compression may take."""

    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Such as 24GB: blocks at once, gradient checkpointing and adapters are chosen so that all fits."
        ),
    ] = None

    def values(self) -> dict[str, str | None]:
        """Return the parameters that these options stand for."""
        return {"model.max_memory": self.max_memory}


@dataclass(frozen=True)
class SelectionOptions:
    """How many layers go, and which blocks of which text the choice is made on."""

    layers: Annotated[
        int | None, typer.Option(help="Remove exactly this many layers.")
    ] = None
    ratio: Annotated[
        float | None, typer.Option(help="Remove round(ratio x layers) layers.")
    ] = None
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="UTF-8 text, or rows (.jsonl, .csv, .parquet), to calibrate on.",
        ),
    ] = None
    samples: Annotated[int | None, typer.Option(help="Calibration blocks.")] = None
    seq_len: SeqLen = None
    seed: Annotated[
        int | None, typer.Option(help="Seed of the blocks and of all training.")
    ] = None

    def values(self) -> dict[str, Any]:
        """Return the parameters that these options stand for.

        Raises:
            UserError: if the calibration text is not there.
        """
        text = self.calibration
        if text is not None and not text.is_file():
            raise UserError(
                f"there is no calibration file {str(text)!r}; give the path of a plain UTF-8 text"
            )
        return {
            "select.layers": self.layers,
            "select.ratio": self.ratio,
            "calibration.source": None if text is None else str(text),
            "calibration.samples": self.samples,
            "calibration.seq_len": self.seq_len,
            "calibration.seed": self.seed,
        }


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Spell out the option groups of a command: Typer sees one keyword for each field, the command gets the groups.

    Args:
        command: those of its parameters that are annotated with a dataclass are groups.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    spelt_out: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name in groups:
            spelt_out += _keywords(groups[name])
        else:
            keyword = parameter.replace(
                kind=Parameter.KEYWORD_ONLY, annotation=hints[name]
            )
            spelt_out.append(keyword)

    @wraps(command)
    def call(**given: Any) -> None:
        given = {name: _at_home(value) for name, value in given.items()}
        for name, group in groups.items():
            own = {field.name: given.pop(field.name) for field in fields(group)}
            given[name] = cast(type, group)(**own)
        command(**given)

    call.__annotations__ = {keyword.name: keyword.annotation for keyword in spelt_out}
    call.__signature__ = Signature(spelt_out)  # type: ignore[attr-defined]
    return call


def _at_home(value: Any) -> Any:
    """Spell out ``~`` in a path: shells leave it as it is in ``--output=~/out``."""
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _keywords(group: Any) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=hints[field.name],
        )


def _default(field: "Field[Any]") -> Any:
    return Parameter.empty if field.default is MISSING else field.default
