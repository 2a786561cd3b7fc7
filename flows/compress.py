"""The main flow: calibration, the stages of a compression, evaluate, speed, gate, store, register, report."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from prefect import flow

from elder import __version__
from elder.compression.job import processes
from elder.compression.stages import STAGES
from elder.params import Model, Params
from elder.record import plain
from elder.settings import load_params
from tasks.baseline import baseline, baseline_key
from tasks.data import prepare_data
from tasks.errors import without_secrets
from tasks.provenance.energy import Meter
from tasks.provenance.lineage import lineage
from tasks.record import dense_key, judge, publish, register, report, row, settle
from tasks.registry.champion import present_champion
from tasks.run.folder import close_run, file_stamps, forget_other_inputs
from tasks.run.slots import bury, ensure_gpu_limit
from tasks.stage import compression_stage, evaluate, evaluate_dense, measure_speed, save


@flow(name="compress", flow_run_name="{run_id}")
def compress(
    run_id: str, run_dir: Path, root: Path, method: str, model: str, revision: str | None
) -> dict[str, Any]:
    """Make one shallower model and bring it to the registry.

    Args:
        run_id: name of the run.
        run_dir: its folder, with all parameters in params.yaml: Prefect keeps a flow's arguments, and should keep no
            password. What is finished there is not done again.
        root: the project's folder, with dvc.yaml.
        method: name of the recipe.
        model: local folder or Hub id that ``model.name`` stands for.
        revision: commit of a Hub model.

    Returns:
        The run's record.
    """
    started = time.monotonic()
    settings = load_params(run_dir / "params.yaml")
    meter = Meter(run_dir / "energy.json", settings.energy)
    ensure_gpu_limit()
    bury(run_id)
    found = settings.model.model_copy(update={"name": model, "revision": revision})
    data = prepare_data(settings.model_copy(update={"model": found}), root, run_dir / "data")
    origin = lineage(root) | {
        "data": data["digests"],
        "dvc_lock_sha256": data["dvc_lock_sha256"],
    }
    stamps = file_stamps(Path(model)) if Path(model).is_dir() else revision
    inputs = {
        "data": data["digests"],
        "model": stamps,
        "code": [__version__, origin["git_commit"]],
    }
    forget_other_inputs(run_dir, inputs)
    params, blocks = (
        _write_params(settings, found, run_dir),
        run_dir / "data" / "calibration.safetensors",
    )

    work = run_dir / "work"
    for stages in processes(STAGES):
        compression_stage(stages, work, params, blocks)
    folder = run_dir / settings.registry.name
    record = save(work, params, blocks, folder, method)

    key = dense_key(record["model"]["digest"], settings, data["digests"], root)
    dense = row(
        "dense", "dense", evaluate_dense(key, model, params, run_dir / "dense.json"), {}, []
    )
    candidate = row(
        method,
        "candidate",
        evaluate(method, folder, params, run_dir / "candidate.json"),
        record,
        record["removed"],
    )
    others = [name for name in dict.fromkeys(settings.evaluate.baselines) if name != method]
    rows = [dense, candidate]
    for name in others:
        own = baseline_key(name, key, data["digests"][blocks.name], settings)
        rows.append(baseline(own, name, settings, run_dir, params, blocks))
    speed = measure_speed(model, folder, params, run_dir / "speed.json")
    present = present_champion(settings.registry, settings.store)
    champion = plain(present) if present else None
    gate = judge(settings.gate, dense, candidate, speed, champion)

    record |= {
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "model": record["model"] | {"name": settings.model.name},
        "rows": rows,
        "speed": speed,
        "champion": champion,
        "gate": gate,
        "energy": meter.stop(),
        "data": {"source": data["source"], "stages": data["stages"]},
        "lineage": record["lineage"]
        | origin
        | {"params": without_secrets(settings.model_dump(mode="json"))},
    }
    record = settle(record, run_dir / "settled.json")
    published = publish(folder, record, settings, root)
    record["artifact"] = published.model_dump(exclude={"uploaded_bytes"})
    mlflow_run, record["model_version"] = register(record, published, settings.registry)
    record["report"] = str(run_dir / "report.html")
    report(record, run_dir, settings.registry, mlflow_run)
    close_run(run_dir, record)
    return record


def _write_params(settings: Params, model: Model, run_dir: Path) -> Path:
    """Write the parameters that the stages read: with the model that was found and the run's own copy of the texts."""
    tree = without_secrets(settings.model_dump(mode="json"))
    tree["model"] = model.model_dump(mode="json")
    tree["evaluate"] |= {
        name: str(run_dir / "data" / f"{name}.txt") for name in ("in_domain", "out_of_domain")
    }
    path = run_dir / "stages.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path
