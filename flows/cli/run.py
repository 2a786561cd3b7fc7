"""``elder run`` and ``elder doctor``: the whole flow, and what it lacks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from elder.cli.options import AsJson, CommonOptions, ParameterOptions
from elder.cli.output import show
from elder.process import end_when_told
from elder.record import Record, Row
from elder.settings import DEFAULT
from flows.environment import prepare_environment, project_root

Checks = list[dict[str, Any]]


def run(
    parameters: ParameterOptions,
    method: Annotated[
        str | None,
        typer.Option(help="elder (as published), shortgpt, sleb; else the default."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole flow, from calibration data to a registered challenger and a report."""
    settings = parameters.settings(method=method)
    root = project_root()
    prepare_environment()
    from flows.run import run_compression, run_result

    end_when_told()
    record = run_compression(settings, root, method or DEFAULT)
    show(
        run_result(record), as_json, lambda: _run_lines(record, settings.registry.name)
    )
    if record.gate.refused:
        raise typer.Exit(1)


def doctor(common: CommonOptions) -> None:
    """Say what is missing: device, model, data, store, registry, Prefect, disk."""
    settings = common.settings()
    prepare_environment()
    from flows.checks.doctor import examine

    checks: Checks = examine(settings, Path.cwd())
    well = all(check["ok"] for check in checks)
    lines = [
        f"{'ok     ' if check['ok'] else 'missing'}  {check['name']}: {check['detail']}"
        for check in checks
    ]
    show({"ok": well, "checks": checks}, common.as_json, lambda: lines)
    if not well:
        raise typer.Exit(1)


def _run_lines(record: Record, name: str) -> list[str]:
    lines = [f"{'':<12}{'in domain':>12}{'out of domain':>16}{'tasks':>8}"]
    lines += [_row_line(row) for row in record.rows]
    lines.append(f"removed layers, in order: {', '.join(map(str, record.removed))}")
    if record.speed:
        ratio = record.speed.ratio
        lines.append(
            f"speed: prompt {_number(ratio.prompt_speedup)}x, generation {_number(ratio.throughput)}x"
        )
    reasons = "; ".join(reason.rstrip(".") for reason in record.gate.reasons)
    verdict = "passed" if record.gate.passed else f"refused: {reasons}"
    lines.append(f"gate ({record.gate.mode}): {verdict}")
    version = record.model_version
    registered = f"{name} version {version}, alias challenger" if version else "nothing"
    lines.append(f"registered: {registered}")
    lines.append(f"report: {record.report}")
    return lines


def _row_line(row: Row) -> str:
    inside = _number(row.perplexity["in_domain"].perplexity)
    outside = _number(row.perplexity["out_of_domain"].perplexity)
    tasks = _number(row.task_mean.value, 3) if row.task_mean else ""
    return f"{row.name:<12}{inside:>12}{outside:>16}{tasks:>8}".rstrip()


def _number(value: float | None, digits: int = 2) -> str:
    """Write a number; one that is missing or was infinite as a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
