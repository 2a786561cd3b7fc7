"""The ``elder`` command: the library's commands, and those of the pipeline around it."""

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from elder.cli import compare as compare_cli
from elder.cli.app import AsJson, Overrides, ParamsFile, app, show
from elder.model.load import RESOLVERS
from elder.params import Params
from elder.settings import LISTENERS, read_params
from flows.environment import prepare_environment, project_root

Checks = list[dict[str, Any]]


@app.command()
def run(
    params: ParamsFile = None,
    overrides: Overrides = None,
    method: Annotated[
        str | None, typer.Option(help="elder (as published), shortgpt, sleb; else the default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole flow, from calibration data to a registered challenger and a report."""
    settings = read_params(params, overrides, {})
    root = project_root()
    prepare_environment()
    from elder.compression.recipes import DEFAULT, apply_method
    from flows.run import refused, run_compression, summary

    settings = apply_method(settings, method, overrides)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that what is open is closed, as after Ctrl-C
    record = run_compression(settings, root, method or DEFAULT)
    show(summary(record), as_json, lambda: _run_lines(record, settings.registry.name))
    if refused(record):
        raise typer.Exit(1)


@app.command()
def doctor(
    params: ParamsFile = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Say what is missing: device, model, data, store, registry, Prefect, disk."""
    settings = read_params(params, overrides, {})
    prepare_environment()
    from flows.checks.doctor import examine

    checks: Checks = examine(settings, Path.cwd())
    well = all(check["ok"] for check in checks)
    lines = [
        f"{'ok     ' if check['ok'] else 'missing'}  {check['name']}: {check['detail']}"
        for check in checks
    ]
    show({"ok": well, "checks": checks}, as_json, lambda: lines)
    if not well:
        raise typer.Exit(1)


def _use_store(settings: Params) -> None:
    """Let s3:// and models:/ names mean what they mean with the parameters of the command that runs."""

    def fetch(name: str) -> Path:
        from tasks.store.models import fetch as run

        return run(name, settings)

    RESOLVERS.update({"s3": fetch, "models": fetch})


LISTENERS.append(_use_store)


def _text_of_dataset(settings: Params, name: str, folder: Path) -> Path:
    """Let `elder compare` read datasets too."""
    from tasks.texts import text_of_dataset

    prepare_environment()
    return text_of_dataset(settings, name, folder)


compare_cli.TEXT_SOURCES.append(_text_of_dataset)


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
