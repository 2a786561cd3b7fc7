"""Start the main flow by hand: check first, open the run's folder, run, and close what was opened if it fails."""

from pathlib import Path
from typing import Any

from elder.model import check_model, device_of, resolve
from elder.params import Params
from elder.progress import say
from elder.stages import layers_to_remove
from tasks import registry
from tasks.record import store_url
from tasks.rundir import run_folder
from tasks.store import open_store


def run_compression(settings: Params, root: Path, method: str) -> dict[str, Any]:
    """Run the flow in this process, or go on with an unfinished run of the same inputs; returns its record.

    Raises:
        UserError: for whatever is wrong with the input; cheap checks come before any work.
    """
    check(settings, root)
    from flows.compress import compress

    local = settings.model_copy(
        update={"model": settings.model.model_copy(update={"name": resolve(settings.model.name)})}
    )
    with run_folder(root, settings, method) as (run_id, run_dir):
        going_on = (run_dir / "stages.yaml").exists()
        say(f"{'going on with' if going_on else 'starting'} run {run_id}")
        return compress(local, run_id, run_dir, root, method)


def check(settings: Params, root: Path) -> None:
    """Check all that can be checked without loading weights: device, model, layers, store, registry."""
    device_of(settings.model.device)
    config = check_model(resolve(settings.model.name), settings.model)
    layers_to_remove(settings.select, config.get_text_config(decoder=True).num_hidden_layers)
    open_store(store_url(settings.store, root), settings.store.endpoint, settings.store.region).check()
    registry.check(settings.registry, settings.store)
