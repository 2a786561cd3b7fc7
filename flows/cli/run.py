"""``elder run`` and ``elder doctor``: the whole flow, and what it lacks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from elder.cli.options import AsJson, CommonOptions, ParameterOptions
from elder.cli.output import show
from elder.settings import DEFAULT
from flows.environment import end_as_after_ctrl_c, prepare_environment, project_root

Checks = list[dict[str, Any]]


def run(
    parameters: ParameterOptions,
    method: Annotated[
        str | None, typer.Option(help="elder (as published), shortgpt, sleb; else the default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole flow, from calibration data to a registered challenger and a report."""
    settings = parameters.settings(method=method)
    root = project_root()
    prepare_environment()
    from flows.run import refused, run_compression, summary

    end_as_after_ctrl_c()
    record = run_compression(settings, root, method or DEFAULT)
    show(summary(record), as_json, lambda: _run_lines(record, settings.registry.name))
    if refused(record):
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


def _run_lines(record: dict[str, Any], name: str) -> list[str]:
    lines = [f"{'':<12}{'in domain':>12}{'out of domain':>16}{'tasks':>8}"]
    for row in record["rows"]:
        inside, outside = (
            row["perplexity"][domain]["perplexity"] for domain in ("in_domain", "out_of_domain")
        )
        mean = (row.get("task_mean") or {}).get("value")
        tasks = "" if mean is None else f"{mean:8.3f}"
        lines.append(f"{row['name']:<12}{inside:>12.2f}{outside:>16.2f}{tasks}")
    gate, ratio = record["gate"], record["speed"]["ratio"]
    lines.append(f"removed layers, in order: {', '.join(map(str, record['removed']))}")
    lines.append(
        f"speed: prompt {ratio['prompt_speedup']:.2f}x, generation {ratio['throughput']:.2f}x"
    )
    failed = [rule["reason"].rstrip(".") for rule in gate["rules"] if not rule["passed"]]
    lines.append(
        f"gate ({gate['mode']}): {'passed' if gate['passed'] else 'refused: ' + '; '.join(failed)}"
    )
    version = record["model_version"]
    lines.append(
        f"registered: {name} version {version}, alias challenger"
        if version
        else "registered: nothing"
    )
    lines.append(f"report: {record['report']}")
    return lines
