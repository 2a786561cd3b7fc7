"""``elder compare``: methods side by side at equal budget, as a table and charts.

Heavy imports stay inside the command, so that help appears at once.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from elder.cli.comparison import CompareOptions, read_comparison
from elder.cli.options import CommonOptions
from elder.cli.output import show
from elder.cli.results import ComparisonResult
from elder.cli.services import Services, services_of
from elder.errors import UserError
from elder.names import format_of
from elder.params import Params
from elder.process import prepare_libraries
from elder.progress import say

if TYPE_CHECKING:
    from elder.compare.plan import Measurement
    from elder.compare.table import Section


def compare(ctx: typer.Context, options: CompareOptions, common: CommonOptions) -> None:
    """Compare methods at equal budget: a table and charts. Goes on where it was cut."""
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

    failures = run_all(measurements, output, write, services.measuring(base))
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


def texts_as_files(
    services: Services, base: Params, calibrations: list[str], folder: Path
) -> tuple[Params, list[str]]:
    """Return the parameters and the calibration texts with datasets turned into text files below a folder.

    Raises:
        UserError: for a name that is no file where the pipeline's packages are missing.
    """

    def file(name: str) -> str:
        if Path(name).is_file() and format_of(name) is None:
            return str(services.plain_text(name, base))
        return str(services.text_of_dataset(base, name, folder))

    wanted = base.evaluate
    texts = {
        "in_domain": file(wanted.in_domain),
        "out_of_domain": file(wanted.out_of_domain),
    }
    evaluate = wanted.model_copy(update=texts)
    return base.model_copy(update={"evaluate": evaluate}), [
        file(name) for name in calibrations
    ]


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
