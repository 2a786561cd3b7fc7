"""Start the main flow: check first, wait for its turn, open the run's folder, run, and tell how it ended."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from elder.compression.recipes import apply_method
from elder.compression.stages import layers_to_keep
from elder.device import device_of
from elder.errors import Crash, UserError
from elder.evaluation.tasks import check_tasks
from elder.model.check import check_model
from elder.model.removal import outline
from elder.names import split_revision
from elder.params import Params
from elder.progress import say
from elder.selection import get_method
from elder.settings import read_params
from flows.checks import reach
from tasks.errors import hide_secrets
from tasks.provenance import signing
from tasks.registry.client import Registry
from tasks.run import notify
from tasks.run.folder import run_folder
from tasks.run.turn import turn
from tasks.store.models import local_model
from tasks.store.open import configured_store


def read_settings(
    params: Path | None, overrides: list[str] | None, method: str | None
) -> Params:
    """Return the parameters of a run: the file, a method's recipe, and ``section.key=value`` overrides over both."""
    return read_params(params, overrides, {}, method)


def run_compression(settings: Params, root: Path, method: str) -> dict[str, Any]:
    """Run the flow in this process, or go on with an unfinished run of the same inputs; returns its record.

    Only one run at a time is at work in a project; this one waits for its turn. Whoever ``notify`` names is told how it
    ended, unless it was interrupted.

    Raises:
        UserError: for whatever is wrong with the input; cheap checks come before any work.
    """
    told: dict[str, Any] = {"run_id": None, "name": settings.registry.name}
    try:
        record = _run(settings, root, method, told)
    except Exception as error:
        said = (
            str(error)
            if isinstance(error, UserError | Crash)
            else f"{type(error).__name__}: {error}"
        )
        notify.notify(settings.notify, "failure", told | {"error": hide_secrets(said)})
        raise
    found = summary(record)
    gate = {
        "mode": record["gate"]["mode"],
        "passed": record["gate"]["passed"],
        "reasons": reasons(record),
    }
    told |= {"version": found["model_version"], "gate": gate, "perplexity": found["perplexity"]}
    notify.notify(
        settings.notify,
        "refusal" if refused(record) else "success",
        told | {"report": found["report"]},
    )
    return record


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's record comes down to; perplexities are those out of domain, None where not finite."""
    found = {
        row["kind"]: row["perplexity"]["out_of_domain"]["perplexity"] for row in record["rows"]
    }
    finite = {kind: value if math.isfinite(value) else None for kind, value in found.items()}
    return {
        "run_id": record["run_id"],
        "model_version": record["model_version"],
        "gate": record["gate"],
        "report": record["report"],
        "perplexity": {"dense": finite["dense"], "pruned": finite["candidate"]},
        "removed": record["removed"],
        "seconds": record["seconds"],
    }


def refused(record: dict[str, Any]) -> bool:
    """Say whether the gate kept the model of a run out of the registry."""
    return record["gate"]["mode"] == "on" and not record["gate"]["passed"]


def reasons(record: dict[str, Any]) -> list[str]:
    """Return a sentence for each rule of the gate that was not held."""
    return [rule["reason"] for rule in record["gate"]["rules"] if not rule["passed"]]


def _run(settings: Params, root: Path, method: str, told: dict[str, Any]) -> dict[str, Any]:
    """Check, wait, run; puts the run's id into what is told."""
    model, revision = find_model(settings)
    check(settings, root)
    from flows.compress import compress

    with turn(root) as hold, run_folder(root, settings, method) as (run_id, run_dir):
        told["run_id"] = run_id
        hold(run_id)
        going_on = (run_dir / "stages.yaml").exists()
        say(f"{'going on with' if going_on else 'starting'} run {run_id}")
        try:
            return compress(run_id, run_dir, root, method, model, revision)
        except BaseException as error:
            with suppress(UserError):  # the first failure is the one to tell
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                Registry(settings.registry).end_failed(run_id, status)
            raise


def find_model(settings: Params) -> tuple[str, str | None]:
    """Check device, model, and that as many layers may go as should, without loading weights.

    Returns:
        The local folder or the Hub id that ``model.name`` means, and the commit of a Hub model: a branch may move while
        the run goes on.
    """
    device_of(settings.model.device)
    source, revision = split_revision(local_model(settings.model.name, settings))
    config = check_model(source, settings.model)
    layers_to_keep(outline(config, settings.model.trust_remote_code), settings.select)
    return source, getattr(config, "_commit_hash", None) or revision or settings.model.revision


def check(settings: Params, root: Path) -> None:
    """Check what else can be checked before any work: methods, tasks, store, registry, Prefect, key, webhook."""
    get_method(settings.select.method)
    for name in settings.evaluate.baselines:
        apply_method(settings, name)
    folder = settings.evaluate.task_data
    check_tasks(settings.evaluate.tasks, root / folder if folder else None)
    configured_store(settings.store, root).check()
    Registry(settings.registry).check_store(settings.store)
    reach.prefect(settings, root)
    signing.check(settings.signing, root)
    notify.check(settings.notify)
