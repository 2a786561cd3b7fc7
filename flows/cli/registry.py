"""``elder promote``, ``elder rollback``, ``elder history``: who is champion, and who decided so, when and why."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elder.cli.options import CommonOptions
from elder.cli.output import refuse, show
from elder.errors import UserError
from elder.params import Params
from elder.progress import one_line, say
from flows.environment import prepare_environment

if TYPE_CHECKING:
    from tasks.registry.history import Entry
    from tasks.registry.promotion import Plan

Name = Annotated[str, typer.Argument(metavar="NAME", help="Registered model.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Go on where the comparison with the champion says no or cannot be made.",
    ),
]
AcceptHistory = Annotated[
    bool,
    typer.Option(
        "--accept-history",
        help="Sign the history as it lies, though it is unsigned or cut, or the registry tells otherwise.",
    ),
]
HISTORY = ("", "decision", "version", "before", "by", "key", "at (UTC)", "reason")
COLUMNS = {"layers": "d", "in_domain": ".2f", "out_of_domain": ".2f", "tasks": ".3f"}


@dataclass(frozen=True)
class Confirmation:
    """Whether somebody is to be asked, and why it is done."""

    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needs --reason.")] = (
        False
    )
    reason: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why; the history keeps it.")
    ] = None

    def check(self) -> None:
        """Refuse before any work what could not be confirmed afterwards."""
        if self.yes and not self.reason:
            raise UserError(
                "--yes was given without a reason: add --reason TEXT, which the history keeps"
            )
        if not self.yes and not on_terminal():
            raise UserError("there is no terminal to ask on: give --yes --reason TEXT")


def promote(
    *,
    name: Name,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="Number of the version.")
    ],
    confirmation: Confirmation,
    force: Force = False,
    accept_history: AcceptHistory = False,
    common: CommonOptions,
) -> None:
    """Make a version the champion, after checks of its signatures, gate, bytes and numbers beside the champion."""
    confirmation.check()
    settings = common.decision()
    prepare_environment()
    from tasks.registry.promotion import plan_promotion

    def plan() -> "Plan":
        return plan_promotion(
            settings, Path.cwd(), name, version, force, accept_history
        )

    _decide(settings, plan, confirmation, common.as_json)


def rollback(name: Name, confirmation: Confirmation, common: CommonOptions) -> None:
    """Go back to the champion before the present one; given again, to the one before that."""
    confirmation.check()
    settings = common.decision()
    prepare_environment()
    from tasks.registry.promotion import plan_rollback

    def plan() -> "Plan":
        return plan_rollback(settings, Path.cwd(), name)

    _decide(settings, plan, confirmation, common.as_json)


def history(name: Name, common: CommonOptions) -> None:
    """Show every promotion and rollback of a model: who, when, why, and from which version."""
    settings = common.decision()
    prepare_environment()
    from tasks.registry.promotion import history_of

    decisions, faults = history_of(settings, Path.cwd(), name)
    log = decisions.entries
    if common.as_json:
        heading = dict.fromkeys(("version", "previous", "by", "at"))
        if log and not faults:
            last = log[-1].model_dump()
            heading = {key: last[key] for key in heading}
        entries = [entry.model_dump() for entry in log]
        told = {"name": name, **heading, "entries": entries, "faults": faults}
        show(told, True, list)
    else:
        _print_table(name, log, faults)
    if faults:
        refuse(f"who is champion of {name} is in doubt: {'; '.join(faults)}", 1)


def on_terminal() -> bool:
    """Say whether somebody can be asked."""
    return sys.stdin.isatty()


def _decide(
    settings: Params,
    make_plan: "Callable[[], Plan]",
    confirmation: Confirmation,
    as_json: bool,
) -> None:
    """Check, ask, and do; exit 1 where a check or the person who was asked said no."""
    from tasks.provenance.identity import who_acts
    from tasks.registry.promotion import Refused, carry_out

    reason = confirmation.reason
    try:
        plan = make_plan()
        if not confirmation.yes:
            for line in _plan_lines(plan):
                say(line)
            if not typer.confirm(f"{plan.action.capitalize()}?", err=True):
                refuse("nothing was changed", 1)
            reason = reason or typer.prompt("Why?", err=True)
        who, comment = who_acts(settings.registry), os.environ.get("ELDER_USER")
        entry = carry_out(settings, Path.cwd(), plan, who, reason or "", comment)
    except Refused as refusal:
        refuse(f"refused: {refusal}", 1)
    show(
        {"name": plan.name, **entry.model_dump()},
        as_json,
        lambda: [_sentence(plan.name, entry), entry.compared],
    )


def _plan_lines(plan: "Plan") -> list[str]:
    """Say what would change, with the numbers of both versions."""
    lines = [
        f"{plan.name}: champion would be version {plan.version}, now it is {plan.previous or 'none'}"
    ]
    if plan.measured:
        lines.append(
            f"{'':<12}{'layers':>8}{'in domain':>12}{'out of domain':>16}{'tasks':>8}"
        )
    for version, numbers in plan.measured.items():
        shown = [
            "-" if numbers.get(key) is None else f"{numbers[key]:{form}}"
            for key, form in COLUMNS.items()
        ]
        lines.append(
            f"version {version:<4}{shown[0]:>8}{shown[1]:>12}{shown[2]:>16}{shown[3]:>8}"
        )
    return [
        *lines,
        plan.compared,
        f"The stored bytes of version {plan.version} are those that were signed.",
        *([f"Accepted as it lies: {plan.accepted}"] if plan.accepted else []),
    ]


def _why(entry: "Entry") -> str:
    """Return the reason, and in brackets what was said beside it."""
    return f"{entry.reason} ({entry.comment})" if entry.comment else entry.reason


def _sentence(name: str, entry: "Entry") -> str:
    before = f"was version {entry.previous}" if entry.previous else "the first"
    return f"{name}: champion is version {entry.version} ({before}), by {entry.by} at {entry.at}: {entry.reason}"


def _print_table(name: str, log: "list[Entry]", faults: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not log:
        print(
            f"{name}: nothing was ever promoted{' that can be believed' if faults else ''}"
        )
        return
    title = f"{name}: champion is version {log[-1].version}"
    if faults:
        title = f"{name}: the decisions that can be believed"
    table = Table(title=title, title_justify="left")
    for heading in HISTORY:
        table.add_column(heading)
    for entry in log:
        row: list[Any] = [
            entry.number,
            entry.action,
            entry.version,
            entry.previous or "none",
            entry.by,
        ]
        row += [entry.signed_by, entry.at[:19].replace("T", " "), _why(entry)]
        table.add_row(*(Text(one_line(str(cell))) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
