"""What tests of a lost registry do: bring models to store and registry, decide on them, and tell all that is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elder import params
from elder.record import Record
from tasks.record import publish_folder, register_run, report
from tasks.registry.attached import TAG as ATTACHED
from tasks.registry.client import Registry
from tasks.registry.logged import TAG as LOGGED
from tasks.registry.registration import TAG
from tests.tasks.registered import record as numbers_of

Make = Callable[..., params.Params]


def run(
    settings: params.Params,
    root: Path,
    number: int,
    gate: str = "passed",
) -> str | None:
    """Bring the model of a run made at minute ``number`` to store and registry, as the flow does; returns its version.

    Perplexities go down: 20 - number. ``gate`` is as for `tests.tasks.registered.record`.
    """
    run_id = f"20261124-02{number:02}00-ab12cd34"
    folder = root / "runs" / run_id / settings.registry.name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(f"weights of {run_id}".encode())
    (folder / "elder.json").write_text("{}")
    made = numbers_of(20.0 - number, gate=gate, name=settings.registry.name)
    sizes = {"removed": [1], "parameters": 96, "tasks": {}}
    dense, row = made["rows"]
    rules = made["lineage"]["params"]["gate"]
    record = made | {
        "run_id": run_id,
        "created": f"2026-11-24T02:{number:02}:00+00:00",
        "model": {
            "name": "models/dense",
            "revision": None,
            "digest": "d" * 64,
            "num_layers": 3,
            "parameters": 128,
        },
        "method": "default",
        "num_layers": 3,
        "removed": [1],
        "kept": [0, 2],
        "weights": {
            "name": "layer weight",
            "rounds": [{"removed": [1], "values": [0.9, 0.1, 0.8], "checked": []}],
        },
        "rows": [dense | sizes, row | sizes],
        "curve": [
            {"stage": "recover", "step": step, "loss": 3.5 - step, "lr": 0.5}
            for step in (1, 2)
        ],
        "data": {"source": {}, "stages": {}},
        "lineage": {
            "git_commit": "c0ffee",
            "git_clean": True,
            "data": {},
            "installed": {"torch": "2"},
            "params": settings.model_dump(mode="json") | {"gate": rules},
        },
    }
    typed = Record.model_validate(record)
    (folder / "config.json").write_text("{}")
    published = publish_folder(folder, typed, settings, root)
    mlflow_run, version = register_run.fn(typed, published, settings, root)
    later = {
        "artifact": published.model_dump(exclude={"uploaded_bytes"}),
        "model_version": version,
    }
    told = record | later | {"report": str(folder.with_name("report.html"))}
    whole = Record.model_validate(told)
    report.fn(whole, folder.with_name("report.html"), mlflow_run, settings, root)
    return version


def snapshot(settings: params.Params) -> dict[str, Any]:
    """Return all that the registry tells, under names that a new registry has, too."""
    registry = Registry(settings.registry)
    client = registry.client
    experiment = client.get_experiment_by_name(settings.registry.experiment)
    runs, versions = {}, {}
    for found in client.search_runs([experiment.experiment_id]):
        data, run_id = found.data, found.info.run_id
        metrics = {
            key: sorted(
                (m.step, m.value, m.timestamp)
                for m in client.get_metric_history(run_id, key)
            )
            for key in data.metrics
        }
        attached = json.loads(
            Path(client.download_artifacts(run_id, "record.json")).read_text()
        )
        attached.pop("report", None)  # where the run's own machine has it
        runs[data.tags["run_id"]] = {
            # signed anew
            "tags": data.tags | {ATTACHED: ATTACHED in data.tags},
            "params": data.params,
            "metrics": metrics,
            "status": found.info.status,
            "files": registry.attached(run_id),
            "record": attached,
        }
    names = {
        found.info.run_id: found.info.run_name
        for found in client.search_runs([experiment.experiment_id])
    }
    for version in client.search_model_versions("name = 'tiny'"):
        versions[version.version] = (
            names[version.run_id],
            version.source,
            # signed anew at another time: whether it holds, promotions ask; the logged model is made anew
            version.tags | {one: one in version.tags for one in (TAG, LOGGED)},
        )
    model = client.get_registered_model("tiny")
    return {
        "runs": runs,
        "versions": versions,
        "tags": model.tags,
        "aliases": model.aliases,
    }
