"""The main flow: calibration, learn, regularise, remove, recover, evaluate, speed, gate, store, register, report."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from prefect import flow

from elder.params import Params
from elder.recipes import apply_method
from tasks.data import prepare_data
from tasks.lineage import lineage
from tasks.record import dense_key, judge, publish, register, report, row
from tasks.rundir import close_run
from tasks.stage import compression_stage, ensure_gpu_limit, evaluate, evaluate_dense, measure_speed, save


@flow(name="compress", flow_run_name="{run_id}")
def compress(settings: Params, run_id: str, run_dir: Path, root: Path, method: str) -> dict[str, Any]:
    """Make one shallower model and bring it to the registry.

    Args:
        settings: all parameters; ``model.name`` is a local folder or a Hub id.
        run_id: name of the run.
        run_dir: its folder; what is finished there is not done again.
        root: the project's folder, with dvc.yaml.
        method: name of the recipe.

    Returns:
        The run's record.
    """
    started = time.monotonic()
    ensure_gpu_limit()
    data = prepare_data(settings, root)
    params, blocks = _write_params(settings, data, run_dir), Path(data["folder"]) / "calibration.safetensors"

    work = run_dir / "work"
    for stage in ("learn", "regularise", "remove", "recover"):
        compression_stage(stage, work, params, blocks)
    folder = run_dir / settings.registry.name
    record = save(work, params, blocks, folder, method)

    key = dense_key(record["model"]["digest"], settings, data["digests"], root)
    dense = row("dense", "dense", evaluate_dense(key, settings.model.name, params, run_dir / "dense.json"), {}, [])
    candidate = row(
        method, "candidate", evaluate(method, folder, params, run_dir / "candidate.json"), record, record["removed"]
    )
    rows = [
        dense,
        candidate,
        *(_baseline(name, settings, run_dir, params, blocks) for name in settings.evaluate.baselines),
    ]
    speed = measure_speed(settings.model.name, folder, params, run_dir / "speed.json")
    gate = judge(settings.gate, dense, candidate, speed)

    record |= {
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
        "speed": speed,
        "gate": gate,
        "lineage": record["lineage"]
        | lineage(root)
        | {"data": data["digests"], "dvc_lock_sha256": data["dvc_lock_sha256"]},
    }
    published = publish(folder, record, settings, root)
    record["artifact"] = published.model_dump(exclude={"uploaded_bytes"})
    mlflow_run, record["model_version"] = register(record, published, settings.registry)
    record["seconds"] = round(time.monotonic() - started, 1)
    record["report"] = str(run_dir / "report.html")
    report(record, run_dir, settings.registry, mlflow_run)
    close_run(run_dir, record)
    return record


def _baseline(name: str, settings: Params, run_dir: Path, params: Path, blocks: Path) -> dict[str, Any]:
    """Remove as many layers by another method, train nothing, evaluate under the same protocol."""
    plain = apply_method(settings, name).model_copy(
        update={"regularise": settings.regularise.model_copy(update={"epochs": 0})}
    )
    work = run_dir / "baselines" / name
    work.mkdir(parents=True, exist_ok=True)
    own = work / "params.yaml"
    tree = yaml.safe_load(params.read_text(encoding="utf-8"))
    for section in ("select", "regularise", "recover"):
        tree[section] = getattr(plain, section).model_dump(mode="json")
    own.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    compression_stage("learn,remove", work / "work", own, blocks)
    learnt = yaml.safe_load((work / "work" / "learn.json").read_text(encoding="utf-8"))
    found = evaluate(name, work / "work" / "remove", own, work / "evaluation.json")
    return row(name, "baseline", found, learnt | learnt["spent"], learnt["removed"])


def _write_params(settings: Params, data: dict[str, Any], run_dir: Path) -> Path:
    """Write the parameters that the stages read: as given, with the texts that DVC made."""
    tree = settings.model_dump(mode="json")
    tree["evaluate"] |= {name: str(Path(data["folder"]) / f"{name}.txt") for name in ("in_domain", "out_of_domain")}
    path = run_dir / "stages.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path
