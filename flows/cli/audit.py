"""``elder audit`` and ``elder reproduce``: hold a registered version against its record."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elder.cli.options import CommonOptions
from elder.cli.output import show

if TYPE_CHECKING:
    from tasks.audit.reproduce import Reproduction
    from tasks.audit.run import Audit

Waivers = Annotated[
    list[str] | None,
    typer.Option(
        "--waive", metavar="CHECK", help="Let this check fail; repeatable, and told."
    ),
]
MARKS = {True: "holds", False: "BROKEN", None: "unknown"}


def audit(
    *,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="NAME@ALIAS or NAME/VERSION of the registry."
        ),
    ],
    public_key: Annotated[
        Path | None,
        typer.Option(
            help="Key that must have signed; by default one of those in signing.trusted."
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Measure the perplexities again, too.")
    ] = False,
    waive: Waivers = None,
    common: CommonOptions,
) -> None:
    """Recompute what the record of a registered version says, and name each thing that does not hold."""
    from flows.environment import prepare_environment

    settings = common.settings()
    prepare_environment()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from tasks.audit.run import audit as run

    result = run(settings, Path.cwd(), name, public_key, evaluate, waive or ())
    show(result.model_dump(), common.as_json, lambda: _audit_lines(result))
    if not result.ok:
        raise typer.Exit(1)


def reproduce(
    *,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="NAME@ALIAS or NAME/VERSION of the registry."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the model that is made again."),
    ] = None,
    waive: Waivers = None,
    common: CommonOptions,
) -> None:
    """Make a registered version again from its record, with its commit and its data, and compare."""
    from flows.environment import prepare_environment, project_root

    settings = common.settings()
    root = project_root()
    prepare_environment()
    from tasks.audit.reproduce import make_again

    result = make_again(settings, root, name, output, waive or ())
    show(result.as_json(), common.as_json, lambda: _reproduction_lines(result))
    if not result.comparison.ok:
        raise typer.Exit(1)


def _audit_lines(result: "Audit") -> list[str]:
    lines = []
    for check in result.checks:
        mark = "waived" if check.waived else MARKS[check.ok]
        lines.append(f"{mark:<8} {check.name}: {check.detail}")
    broken, waived = ", ".join(result.broken), ", ".join(result.waived)
    verdict = f"does not hold: {broken}" if broken else "nothing speaks against it"
    but = f" but what was waived: {waived}" if waived and not broken else ""
    return [*lines, f"{result.name} version {result.version}: {verdict}{but}"]


def _reproduction_lines(result: "Reproduction") -> list[str]:
    comparison = result.comparison
    lines = [
        f"{MARKS[comparison.same_layers]:<8} same layers",
        f"{MARKS[comparison.same_weights]:<8} same weights",
    ]
    for domain, metric in comparison.metrics.items():
        then, now = _number(metric.recorded), _number(metric.found)
        sentence = f"perplexity {domain}: {then} recorded, {now} now"
        lines.append(
            f"{MARKS[metric.within]:<8} {sentence}, tolerance {metric.tolerance:g}"
        )
    lines += [f"note     {note}" for note in comparison.notes]
    kept = result.output or "not kept (--output DIR keeps it)"
    return [*lines, f"made again with {result.code}; output: {kept}"]


def _number(perplexity: float | None) -> str:
    return "infinite" if perplexity is None else f"{perplexity:.4f}"
