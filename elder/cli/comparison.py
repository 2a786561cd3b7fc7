"""What ``elder compare`` is asked to do: its options, read and checked before any model is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elder.cli.options import CommonOptions, TaskData
from elder.errors import UserError, nearest
from elder.params import Params
from elder.params.catalogue import Recipe
from elder.params.strict_yaml import read_yaml
from elder.settings import read_params

if TYPE_CHECKING:
    from elder.compare.plan import Size
    from elder.compare.rows import RowSpec

PRESETS = Path(__file__).parents[1] / "compare" / "presets"
ALLOWED = {  # option: what its numbers lie between, and how to say it
    "--ratios": (0, 1, "more than 0 and less than 1"),
    "--layers": (0, math.inf, "at least 1"),
    "--seeds": (-1, math.inf, "at least 0"),
}
METHODS = "default,sleb,shortgpt,elder"


@dataclass(frozen=True)
class CompareOptions:
    """What is compared with what, and where the result goes."""

    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Rows such as sleb+distil, with commas between; docs/compare.md has all; {METHODS}."
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(help="Folder, Hub id, s3:// prefix or models:/name@alias."),
    ] = None
    ratios: Annotated[
        str | None,
        typer.Option(help="Shares of the layers to remove, such as 0.25,0.5."),
    ] = None
    layers: Annotated[
        str | None, typer.Option(help="Numbers of layers to remove, such as 3,6.")
    ] = None
    seeds: Annotated[str | None, typer.Option(help="Seeds, such as 0,1,2.")] = None
    calibrations: Annotated[
        str | None,
        typer.Option(
            "--calibrations",
            "--calibration",
            help="Texts to calibrate on, with commas between.",
        ),
    ] = None
    task_data: TaskData = None
    budget: Annotated[
        float, typer.Option(help="Equal budget, in passes over the calibration tokens.")
    ] = 6.6
    preset: Annotated[
        str | None, typer.Option(help="Parameters of a published protocol: paper.")
    ] = None
    output: Annotated[
        Path,
        typer.Option(help="Folder for table, charts and rows; work goes on there."),
    ] = Path("build/compare")


@dataclass(frozen=True)
class Comparison:
    """All that `elder compare` was asked to do, checked: nothing but the measuring is left."""

    rows: "list[RowSpec]"
    base: Params
    sizes: "list[Size]"
    seeds: list[int]
    texts: list[str]


def read_comparison(options: CompareOptions, common: CommonOptions) -> Comparison:
    """Read what is to be compared, and check all that can be checked without a model.

    Raises:
        UserError: for whatever is wrong with the options or the parameters.
    """
    from elder.compare.rows import parse_rows
    from elder.evaluation.tasks import check_tasks

    chosen, preset = read_preset(options.preset)
    base = _read_params(options, common, preset)
    if options.layers is not None and options.ratios is not None:
        raise UserError("--layers and --ratios were both given; give one of them")
    ratios = options.ratios
    if ratios is None and options.layers is None:
        ratios = chosen.get("ratios")
    sizes = read_sizes(options.layers, ratios, base)
    seeds = [base.calibration.seed]
    if options.seeds:
        seeds = numbers("--seeds", options.seeds, int)
    texts = _words(options.calibrations or base.calibration.source)
    rows = parse_rows(options.methods or chosen.get("methods", METHODS))
    for row in rows:
        row.settings(base)
    task_data = base.evaluate.task_data
    check_tasks(base.evaluate.tasks, Path(task_data) if task_data else None)
    return Comparison(rows, base, sizes, seeds, texts)


def _read_params(
    options: CompareOptions, common: CommonOptions, preset: Recipe
) -> Params:
    """Read the parameters that all rows share; a preset gives way to ``--set``."""
    task_data = str(options.task_data) if options.task_data else None
    values = {"model.name": options.model, "evaluate.task_data": task_data}
    return read_params(common.params, common.overrides, values, preset=preset)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def read_preset(name: str | None) -> tuple[dict[str, str], Recipe]:
    """Return what a preset says of the rows, and its parameters, {section: {key: value}}.

    Raises:
        UserError: for an unknown preset.
    """
    if name is None:
        return {}, {}
    known = [path.stem for path in PRESETS.glob("*.yaml")]
    if name not in known:
        raise UserError(f"there is no preset {name!r}; {nearest(name, known)}")
    tree = read_yaml(PRESETS / f"{name}.yaml", "preset", "reinstall this package")
    chosen = {key: tree.pop(key) for key in ("methods", "ratios") if key in tree}
    return chosen, tree


def read_sizes(layers: str | None, ratios: str | None, base: Params) -> "list[Size]":
    """Return the sizes that the options name; without any, the one that the parameters say."""
    from elder.compare.plan import Size

    if layers is not None:
        return [Size(layers=count) for count in numbers("--layers", layers, int)]
    if ratios is not None:
        return [Size(ratio=ratio) for ratio in numbers("--ratios", ratios, float)]
    return [Size(base.select.layers, base.select.ratio)]


def numbers(option: str, text: str, kind: type) -> list[Any]:
    """Read numbers with commas between them; those that are given twice count once.

    Args:
        option: whose value it is: ``--ratios``, ``--layers`` or ``--seeds``.
        text: its value.
        kind: ``int`` or ``float``.

    Raises:
        UserError: for anything else, or for a number that cannot be meant.
    """
    try:
        values = [kind(word) for word in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} {text!r} is not a list of numbers with commas between them, such as 0,1"
        ) from None
    low, high, allowed = ALLOWED[option]
    for value in values:
        if not low < value < high:
            raise UserError(f"{option} holds {value:g}; each must be {allowed}")
    return list(dict.fromkeys(values))
