"""Start the main flow: check first, wait for its turn, open the run's folder, run, and tell how it ended."""

from contextlib import suppress
from pathlib import Path

from elder.errors import Crash, UserError
from elder.fingerprint import RECIPE
from elder.params import Params
from elder.plan.plan import fitted
from elder.progress import say
from elder.record import Json, Record, Row, finite, plain
from elder.secrecy import hide_given_secrets
from elder.settings import read_params
from flows.checks.doctor import require
from flows.checks.inputs import FoundModel, find_model
from tasks.registry.client import Registry
from tasks.retry import little_patience
from tasks.run import notify
from tasks.run.exclusive import exclusive
from tasks.run.folder import run_in_folder
from tasks.run.orphans import end_server_with_this_process
from tasks.run.run import Run


def read_settings(
    params: Path | None, overrides: list[str] | None, method: str | None
) -> Params:
    """Return the parameters of a run: the file, a method's recipe, and ``section.key=value`` overrides over both."""
    return read_params(params, overrides, {}, method)


def run_compression(settings: Params, root: Path, method: str) -> Record:
    """Run the flow in this process, or go on with an unfinished run of the same inputs; returns its record.

    Only one run at a time is at work in a project; this one waits for its turn. Whoever ``notify`` names is told how it
    ended, unless it was interrupted.

    Raises:
        UserError: for whatever is wrong with the input; cheap checks come before any work.
    """
    message: dict[str, Json] = {"run_id": None, "name": settings.registry.name}
    try:
        record = _run(settings, root, method, message)
    except Exception as error:
        message["error"] = sentence(error)
        notify.notify(settings.notify, "failure", message)
        raise
    gate = record.gate
    message |= {
        "version": record.model_version,
        "gate": {"mode": gate.mode, "passed": gate.passed, "reasons": gate.reasons},
        "perplexity": run_result(record)["perplexity"],
        "report": record.report,
    }
    event = "refusal" if gate.refused else "success"
    notify.notify(settings.notify, event, message)
    return record


def run_result(record: Record) -> dict[str, Json]:
    """Return what a run's record comes down to; perplexities are those out of domain, None where not finite."""
    return {
        "run_id": record.run_id,
        "model_version": record.model_version,
        "gate": plain(record.gate),
        "report": record.report,
        "perplexity": {
            "dense": _out_of_domain(record.dense),
            "pruned": _out_of_domain(record.candidate),
        },
        "removed": record.removed,
        "seconds": record.seconds,
    }


def sentence(error: Exception) -> str:
    """Say what went wrong, without secrets."""
    if isinstance(error, UserError | Crash):
        return str(error)
    return hide_given_secrets(f"{type(error).__name__}: {error}")


def _out_of_domain(row: Row) -> float | None:
    value = row.perplexity["out_of_domain"].perplexity
    return value if finite(value) else None


def _run(settings: Params, root: Path, method: str, message: dict[str, Json]) -> Record:
    """Check, wait, run; puts the run's id into the message."""
    require(settings, root)
    model = find_model(settings)
    settings = _fitted(settings, model)
    end_server_with_this_process()
    with (
        exclusive(root) as name_the_run,
        run_in_folder(root, settings, method, model.source, model.revision) as run,
    ):
        message["run_id"] = run.run_id
        name_the_run(run.run_id)
        going_on = run.stage_params.exists()
        say(f"{'going on with' if going_on else 'starting'} run {run.run_id}")
        _start_server()
        return _run_flow(run)


def _fitted(settings: Params, model: FoundModel) -> Params:
    """Return the parameters with which the run fits into ``model.max_memory``, and say what it takes."""
    place = {"name": model.source, "revision": model.revision}
    found = settings.model.model_copy(update=place)
    wanted = fitted(settings.model_copy(update={"model": found}))
    changes = {section: getattr(wanted, section) for section in RECIPE}
    return settings.model_copy(update=changes)


def _start_server() -> None:
    """Let Prefect start the server that it needs for this process, where none is set.

    Raises:
        UserError: it did not answer in time.
    """
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    try:
        get_client(sync_client=True)
    except (RuntimeError, HTTPError):  # it waits for each answer, and for all
        server = get_current_settings().server.ephemeral
        raise UserError(
            "the Prefect server that a run starts for itself did not answer within "
            f"{server.startup_timeout_seconds} seconds, as on a machine with much else to do: try again later, set "
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS to more, or start a server with `prefect server start` "
            "and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        ) from None


def _run_flow(run: Run) -> Record:
    """Run the flow; where it fails, close what it left open in the registry."""
    from httpx import TransportError

    from flows.compress import compress_and_register

    try:
        return compress_and_register(run)
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        # the first failure is the one to tell, and soon
        with suppress(UserError), little_patience():
            Registry(run.settings.registry).end_failed(run.run_id, status)
        if isinstance(error, TransportError):  # the one server that is asked by httpx
            raise UserError(
                f"the Prefect server of run {run.run_id} answers no more ({type(error).__name__}), as where it was "
                "killed or told to end: what is finished is kept; the same command goes on from it"
            ) from None
        raise
