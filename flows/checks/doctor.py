"""The one list of what is looked at before any work: `elder doctor` shows all of it, a run stops at the first no.

A new check is a function in ``inputs`` or ``services``, and a line in the list.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

from elder.errors import UserError
from elder.params import Params
from elder.record import Json
from elder.secrecy import hide_given_secrets
from flows.checks import inputs, services


@dataclass(frozen=True)
class Check:
    """One thing that is looked at.

    Attributes:
        name: what it is called.
        look: returns a sentence of what it saw, or raises a UserError.
        elsewhere: it asks another machine, which may not answer for seconds: such checks are made at the same time.
        scheduled: no run that has started already needs it.
    """

    name: str
    look: Callable[[Params, Path], str]
    elsewhere: bool = False
    scheduled: bool = False


CHECKS = (
    Check("device", inputs.device),
    Check("disk", inputs.disk),
    Check("methods", inputs.methods),
    Check("model", inputs.model),
    Check("evaluation", inputs.evaluation),
    Check("engines", inputs.engines),
    Check("code", inputs.code),
    Check("key", inputs.key),
    Check("webhook", services.webhook),
    Check("calibration", inputs.calibration, elsewhere=True),
    Check("store", services.store, elsewhere=True),
    Check("history", services.history, elsewhere=True, scheduled=True),
    Check("registry", services.registry, elsewhere=True),
    Check("prefect", services.prefect_server, elsewhere=True),
    Check("worker", services.worker, elsewhere=True, scheduled=True),
    Check("data remote", services.data_remote, elsewhere=True),
)


@dataclass(frozen=True)
class Finding:
    """What a check saw: ``fault`` is None where all is well."""

    name: str
    detail: str
    fault: UserError | None


def examine(settings: Params, root: Path) -> list[dict[str, Json]]:
    """Make every check; returns [{name, ok, detail}]."""
    findings = look_at(CHECKS, settings, root)
    return [
        {"name": one.name, "ok": one.fault is None, "detail": one.detail}
        for one in findings
    ]


def require(settings: Params, root: Path) -> None:
    """Make every check that a run needs: first those that take no time, then all others at once.

    Raises:
        UserError: what the first of them says that does not hold.
    """
    needed = [check for check in CHECKS if not check.scheduled]
    for check in needed:
        if not check.elsewhere:
            check.look(settings, root)
    for one in look_at([check for check in needed if check.elsewhere], settings, root):
        if one.fault is not None:
            raise one.fault


def look_at(checks: Sequence[Check], settings: Params, root: Path) -> list[Finding]:
    """Make checks, those that ask other machines at the same time; returns what they saw, in their order."""
    _import_prefect()
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        asked = {}
        for check in checks:
            if check.elsewhere:
                context = copy_context()  # Prefect's settings are those of the caller
                asked[check.name] = pool.submit(
                    context.run, _look, check, settings, root
                )
        seen = []
        for check in checks:
            if check.elsewhere:
                seen.append(asked[check.name].result())
            else:
                seen.append(_look(check, settings, root))
    return seen


def _import_prefect() -> None:
    """Import what several checks would begin to import at once: its modules import each other in circles.

    Of two threads, the second would find what the first has done by half.
    """
    import prefect.client.orchestration
    import prefect.main  # noqa: F401


def _look(check: Check, settings: Params, root: Path) -> Finding:
    try:
        seen = hide_given_secrets(check.look(settings, root))
        return Finding(check.name, seen, None)
    except UserError as error:
        return Finding(check.name, str(error), error)
