"""Start the main flow by hand: check first, open the run's folder, run, and close what was opened if it fails."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from elder.errors import UserError
from elder.harness import check_tasks
from elder.methods import get_method
from elder.model import check_model, device_of, resolve, split_revision
from elder.params import Params
from elder.progress import say
from elder.recipes import apply_method
from elder.removal import outline
from elder.stages import layers_to_keep
from tasks import registry
from tasks.record import store_url
from tasks.rundir import run_folder
from tasks.store import open_store


def run_compression(settings: Params, root: Path, method: str) -> dict[str, Any]:
    """Run the flow in this process, or go on with an unfinished run of the same inputs; returns its record.

    Raises:
        UserError: for whatever is wrong with the input; cheap checks come before any work.
    """
    model, revision = find_model(settings)
    check(settings, root)
    from flows.compress import compress

    with run_folder(root, settings, method) as (run_id, run_dir):
        going_on = (run_dir / "stages.yaml").exists()
        say(f"{'going on with' if going_on else 'starting'} run {run_id}")
        try:
            return compress(run_id, run_dir, root, method, model, revision)
        except BaseException as error:
            with suppress(UserError):  # the first failure is the one to tell
                killed = isinstance(error, KeyboardInterrupt)
                registry.end_failed(settings.registry, run_id, "KILLED" if killed else "FAILED")
            raise


def find_model(settings: Params) -> tuple[str, str | None]:
    """Check device, model, and that as many layers may go as should, without loading weights.

    Returns:
        The local folder or the Hub id that ``model.name`` means, and the commit of a Hub model: a branch may move while
        the run goes on.
    """
    device_of(settings.model.device)
    source, revision = split_revision(resolve(settings.model.name))
    config = check_model(source, settings.model)
    layers_to_keep(outline(config, settings.model.trust_remote_code), settings.select)
    return source, getattr(config, "_commit_hash", None) or revision or settings.model.revision


def check(settings: Params, root: Path) -> None:
    """Check what else can be checked before any work: methods, tasks, store, registry."""
    get_method(settings.select.method)
    for name in settings.evaluate.baselines:
        apply_method(settings, name)
    folder = settings.evaluate.task_data
    check_tasks(settings.evaluate.tasks, root / folder if folder else None)
    open_store(store_url(settings.store, root), settings.store.endpoint, settings.store.region).check()
    registry.check(settings.registry, settings.store)
