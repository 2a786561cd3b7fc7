"""``elder compare``: methods side by side at equal budget, as a table and charts.

Heavy imports stay inside the command, so that help appears at once.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from elder.cli.options import CommonOptions, TaskData
from elder.cli.output import show
from elder.cli.results import ComparisonResult
from elder.cli.services import Services, services_of
from elder.errors import UserError, nearest
from elder.params import Params
from elder.process import prepare_libraries
from elder.progress import say
from elder.settings import read_params

if TYPE_CHECKING:
    from elder.compare.plan import Measurement, Size
    from elder.compare.rows import Row
    from elder.compare.table import Section

PRESETS = Path(__file__).parents[1] / "compare" / "presets"
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
        str | None, typer.Option(help="Folder, Hub id, s3:// prefix or models:/name@alias.")
    ] = None
    ratios: Annotated[
        str | None, typer.Option(help="Shares of the layers to remove, such as 0.25,0.5.")
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
        Path, typer.Option(help="Folder for table, charts and rows; work goes on there.")
    ] = Path("build/compare")


@dataclass(frozen=True)
class Comparison:
    """All that `elder compare` was asked to do, checked: nothing but the measuring is left."""

    rows: "list[Row]"
    base: Params
    sizes: "list[Size]"
    seeds: list[int]
    texts: list[str]


def compare(ctx: typer.Context, options: CompareOptions, common: CommonOptions) -> None:
    """Compare methods at equal budget: a table and charts. Goes on where it was cut; may run several times at once."""
    prepare_libraries()
    asked = read_comparison(options, common)
    from elder.compare.plan import plan
    from elder.compare.run import failures_by_name, run_all
    from elder.compare.write import flat, markdown

    output, budget = options.output, options.budget
    output.mkdir(parents=True, exist_ok=True)
    services = services_of(ctx)
    base = services.with_local_model(asked.base)
    base, texts = texts_as_files(services, base, asked.texts, output / "texts")
    measurements = plan(asked.rows, base, asked.sizes, asked.seeds, texts)
    say(f"{len(measurements)} measurements, the dense model included, in {output}")

    def write() -> "list[Section]":
        return write_table(measurements, output, budget, base)

    failures = run_all(measurements, output, write)
    sections = write()
    draw_charts(sections, output)
    failed = failures_by_name(failures)
    result = ComparisonResult(
        output=str(output), budget=budget, rows=flat(sections), failed=failed
    )

    def lines() -> list[str]:
        table = markdown(sections, budget, asked.seeds)
        return [*table.split("\n"), f"written to {output}/table.md"]

    show(result, common.as_json, lines)
    if failed:
        first, reason = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} row(s) could not be measured, the first {first}: {reason}"
        )


def read_comparison(options: CompareOptions, common: CommonOptions) -> Comparison:
    """Read what is to be compared, and check all that can be checked without a model.

    Raises:
        UserError: for whatever is wrong with the options or the parameters.
    """
    from elder.compare.rows import parse_rows
    from elder.evaluation.tasks import check_tasks

    chosen, preset_values = read_preset(options.preset)
    base = _read_params(options, common, preset_values)
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


def _read_params(options: CompareOptions, common: CommonOptions, preset: list[str]) -> Params:
    """Read the parameters that all rows share; a preset gives way to ``--set``."""
    task_data = str(options.task_data) if options.task_data else None
    values = {"model.name": options.model, "evaluate.task_data": task_data}
    return read_params(common.params, [*preset, *(common.overrides or [])], values)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def read_preset(name: str | None) -> tuple[dict[str, str], list[str]]:
    """Return what a preset says of the rows, and its parameters as ``section.key=value``.

    Raises:
        UserError: for an unknown preset.
    """
    if name is None:
        return {}, []
    known = [path.stem for path in PRESETS.glob("*.yaml")]
    if name not in known:
        raise UserError(f"there is no preset {name!r}; {nearest(name, known)}")
    tree = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    chosen = {key: tree.pop(key) for key in ("methods", "ratios") if key in tree}
    sections = [
        (section, key, value) for section, keys in tree.items() for key, value in keys.items()
    ]
    return chosen, [f"{section}.{key}={json.dumps(value)}" for section, key, value in sections]


def read_sizes(layers: str | None, ratios: str | None, base: Params) -> "list[Size]":
    """Return the sizes that the options name; without any, the one that the parameters say."""
    from elder.compare.plan import Size

    if layers is not None:
        return [Size(layers=count) for count in numbers("--layers", layers, int)]
    if ratios is not None:
        return [Size(ratio=ratio) for ratio in numbers("--ratios", ratios, float)]
    return [Size(base.select.layers, base.select.ratio)]


def numbers(option: str, text: str, kind: type) -> list[Any]:
    """Read numbers with commas between them.

    Raises:
        UserError: for anything else, or for a number that cannot be meant.
    """
    try:
        found = [kind(word) for word in text.split(",")]
    except ValueError:
        raise UserError(
            f"{option} {text!r} is not a list of numbers with commas between them, such as 0,1"
        ) from None
    low, high = {"--ratios": (0.0, 1.0), "--layers": (0, float("inf"))}.get(
        option, (-1, float("inf"))
    )
    wrong = next((number for number in found if not low < number < high), None)
    if wrong is not None:
        allowed = (
            "more than 0 and less than 1"
            if option == "--ratios"
            else f"at least {int(low) + 1}"
        )
        raise UserError(f"{option} holds {wrong:g}; each must be {allowed}")
    return list(dict.fromkeys(found))


def texts_as_files(
    services: Services, base: Params, calibrations: list[str], folder: Path
) -> tuple[Params, list[str]]:
    """Return the parameters and the calibration texts with datasets turned into text files below a folder.

    Raises:
        UserError: for a name that is no file where the pipeline's packages are missing.
    """

    def file(name: str) -> str:
        if Path(name).is_file():
            return name
        return str(services.text_of_dataset(base, name, folder))

    wanted = base.evaluate
    texts = {"in_domain": file(wanted.in_domain), "out_of_domain": file(wanted.out_of_domain)}
    evaluate = wanted.model_copy(update=texts)
    return base.model_copy(update={"evaluate": evaluate}), [file(name) for name in calibrations]


def write_table(
    measurements: "list[Measurement]", output: Path, budget: float, base: Params
) -> "list[Section]":
    """Write table.md, table.csv and table.json of what is measured so far; returns the sections."""
    from elder.compare.result import read_result
    from elder.compare.table import build
    from elder.compare.write import csv_text, flat, markdown
    from elder.files import write_json, write_text

    dense, *rows = measurements
    if not dense.path(output).exists():  # it is in another process's hands
        return []
    results = [read_result(one, output) for one in rows if one.path(output).exists()]
    sections = build(read_result(dense, output), results, budget)
    if sections:
        seeds = sorted({result.seed for result in results})
        table = {
            "budget": budget,
            "seeds": seeds,
            "params": base.model_dump(mode="json"),
            "rows": flat(sections),
        }
        write_text(output / "table.md", markdown(sections, budget, seeds))
        write_text(output / "table.csv", csv_text(sections))
        write_json(output / "table.json", table, finite=True)
    return sections


def draw_charts(sections: "list[Section]", output: Path) -> None:
    """Draw one chart a section, or say in a sentence why not."""
    if not find_spec("matplotlib"):
        say("no charts: matplotlib is not installed; the table has all numbers")
        return
    from elder.compare.chart import section_png

    for number, section in enumerate(sections, start=1):
        section_png(section, output / f"chart-{number}.png")
