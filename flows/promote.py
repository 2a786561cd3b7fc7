"""Promotion by approval, as a Prefect flow: check, wait for somebody to fill in a form, check again, promote.

It needs a Prefect server, which keeps the form; ``prefect.yaml`` deploys it as ``promotion``.
"""

from pathlib import Path
from typing import Any

from prefect import flow, pause_flow_run, task
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.states import Completed, State
from pydantic import Field

from elder.params import Params
from elder.settings import read_params
from flows.environment import prepare_environment
from tasks.provenance.identity import who_acts
from tasks.registry.history import Entry
from tasks.registry.promotion import Plan, Refused, carry_out, plan_promotion
from tasks.retry import try_again

HOUR = 3600


class Decision(RunInput):
    """The form: Prefect shows it, and refuses an answer of other types."""

    approve: bool = Field(description="make this version the champion")
    reason: str = Field(description="why; the history keeps it", min_length=1)
    by: str = Field(
        description="who decides; the history keeps it as a comment", min_length=1
    )


@flow(name="promote", flow_run_name="{name} version {version}")
def promote(
    name: str,
    version: int,
    hours: float = 24,
    force: bool = False,
    params: str = "params.yaml",
    overrides: list[str] | None = None,
) -> State[Any]:
    """Ask for approval and make a version the champion.

    Args:
        name: registered model.
        version: number of the version.
        hours: how long to wait for an answer.
        force: go on where the comparison with the champion says no or cannot be made.
        params: parameter file, relative to the project's folder.
        overrides: ``section.key=value``, as for ``--set``.

    Returns:
        ``Completed``, or a state of the same type named ``Refused`` (a check said no), ``Declined`` (the person did) or
        ``Expired`` (nobody answered), all of which are answers; nothing has changed then. A server whose own check of
        paused runs comes first ends a run that nobody answered as ``Failed``.
    """
    prepare_environment()
    settings, root = read_params(Path(params), overrides, {}), Path.cwd()
    try:
        plan = check_promotion(settings, root, name, str(version), force)
        try:
            answer = pause_flow_run(
                form(plan), timeout=int(hours * HOUR), poll_interval=5
            )
        except FlowPauseTimeout:
            return Completed(
                name="Expired",
                message=f"nobody answered within {hours:g} hours; nothing was changed",
            )
        if not answer.approve:
            return Completed(
                name="Declined",
                message=f"{answer.by}: {answer.reason}; nothing was changed",
            )
        # the bytes once more: the answer may have taken a day
        check_promotion(settings, root, name, str(version), force)
        said = f"the form says: {answer.by}"
        entry = decide(settings, root, plan, answer.reason, said)
    except Refused as refusal:
        return Completed(name="Refused", message=str(refusal))
    return Completed(
        message=f"{name}: champion is version {entry.version}, it was {entry.previous or 'none'}"
    )


def form(plan: Plan) -> type[Decision]:
    """Return the form with what there is to know above it."""
    head = f"**{plan.name}**: version {plan.version} instead of {plan.previous or 'none'}. {plan.compared}"
    rows = [
        f"- version {version}: {numbers}" for version, numbers in plan.measured.items()
    ]
    return Decision.with_initial_data(description="\n".join([head, "", *rows]))


@task(name="check", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def check_promotion(
    settings: Params, root: Path, name: str, version: str, force: bool
) -> Plan:
    """Check all that a promotion needs; changes nothing."""
    return plan_promotion(settings, root, name, version, force)


@task(name="promote")
def decide(
    settings: Params, root: Path, plan: Plan, reason: str, comment: str
) -> Entry:
    """Write the decision down and move the champion; nobody vouches for the name in the form, which is a comment."""
    who = who_acts(settings.registry)
    return carry_out(settings, root, plan, who, reason, comment)
