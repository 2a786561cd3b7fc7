"""Look at everything that a run needs, and say of each thing whether it is there and how to mend it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elder.errors import UserError
from elder.params import Params
from flows.checks import reach

FREE_GIB = 2  # a small model's run takes less; a large one needs several times its size


def examine(settings: Params, root: Path) -> list[dict[str, Any]]:
    """Return [{name, ok, detail}], one for each part."""
    parts: dict[str, Callable[[Params, Path], str]] = {
        "device": _device,
        "disk": _disk,
        "model": _model,
        "calibration": _calibration,
        "evaluation": _evaluation,
        "store": _store,
        "registry": reach.registry,
        "prefect": reach.prefect,
        "worker": reach.worker,
        "data remote": reach.data_remote,
    }
    return [_look(name, part, settings, root) for name, part in parts.items()]


def _look(
    name: str, part: Callable[[Params, Path], str], settings: Params, root: Path
) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": part(settings, root)}
    except UserError as error:
        return {"name": name, "ok": False, "detail": str(error)}


def _device(settings: Params, _: Path) -> str:
    import torch

    from elder.device import device_of

    device = device_of(settings.model.device)
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )


def _disk(_: Params, root: Path) -> str:
    free = shutil.disk_usage(root).free / 2**30
    if free < FREE_GIB:
        raise UserError(
            f"{free:.1f} GiB free in {str(root)!r}, at least {FREE_GIB} are needed; free some space"
        )
    return f"{free:.0f} GiB free"


def _model(settings: Params, _: Path) -> str:
    from elder.model.check import check_model
    from elder.names import split_revision
    from tasks.store.models import local_model

    source, _revision = split_revision(local_model(settings.model.name, settings))
    config = check_model(source, settings.model)
    count = config.get_text_config(decoder=True).num_hidden_layers
    return f"{settings.model.name}, {config.model_type} of {count} layers"


def _calibration(settings: Params, root: Path) -> str:
    from tasks import sources

    source = settings.calibration.source
    if (root / source).exists():
        return source
    if not sources.looks_local(source):
        return f"{source} (a dataset of the Hub, read when a run starts)"
    raise UserError(f"there is no calibration text {source!r}; set calibration.source")


def _evaluation(settings: Params, root: Path) -> str:
    from elder.evaluation.tasks import check_tasks

    folder = settings.evaluate.task_data
    check_tasks(settings.evaluate.tasks, root / folder if folder else None)
    for name in (settings.evaluate.in_domain, settings.evaluate.out_of_domain):
        if not (root / name).is_file():
            raise UserError(
                f"there is no evaluation text {name!r}; set evaluate.in_domain and evaluate.out_of_domain"
            )
    return f"2 texts, tasks {', '.join(settings.evaluate.tasks) or 'none'}"


def _store(settings: Params, root: Path) -> str:
    from tasks.store.open import configured_store

    store = configured_store(settings.store, root)
    store.check()
    return store.url
