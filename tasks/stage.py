"""The GPU tasks: each takes a slot of the ``gpu`` concurrency limit and runs one stage of the library as a subprocess.

A process of its own is the only way that GPU memory is surely freed, and a crash there leaves the flow alive.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from prefect import task
from prefect.concurrency.sync import concurrency

from elder.errors import UserError

GPU = "gpu"
LEASE = 60  # seconds after which a killed run's slot is free again


class Stage:
    """Where the stages of one run find their parameters and calibration blocks.

    Args:
        run_dir: folder of the run.
        params: the YAML file with all parameters, as run.
        calibration: calibration blocks.
    """

    def __init__(self, run_dir: Path, params: Path, calibration: Path) -> None:
        self.run_dir, self.params, self.calibration = run_dir, params, calibration


def run_stage(*arguments: str | Path) -> None:
    """Run ``python -m elder stage ...`` in a slot of the gpu limit, its progress going to this process's stderr.

    Raises:
        UserError: what the stage refused.
        RuntimeError: if it failed otherwise, or was killed.
    """
    with tempfile.TemporaryDirectory() as folder, concurrency(GPU, occupy=1, strict=True, lease_duration=LEASE):
        sentence = Path(folder) / "error"
        done = subprocess.run(
            [sys.executable, "-m", "elder", "stage", *map(str, arguments)],
            env=os.environ | {"ELDER_ERROR_FILE": str(sentence)},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
        )
        if sentence.exists():
            raise UserError(sentence.read_text(encoding="utf-8"))
    if done.returncode:
        how = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with {done.returncode}"
        raise RuntimeError(f"stage {arguments[0]} {how}; what it had finished is kept, run again to go on")


def ensure_gpu_limit(slots: int = 1) -> None:
    """Create the ``gpu`` concurrency limit where the server has none; one that is there keeps its size."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU, limit=slots))


@task(name="compression stage", task_run_name="{name}")
def compression_stage(name: str, work: Path, params: Path, calibration: Path) -> dict[str, Any]:
    """Run one or more stages of a compression (comma-separated); returns the last one's result."""
    run_stage("job", name, "--work", work, "--params", params, "--calibration", calibration)
    return _read(work / f"{name.split(',')[-1]}.json")


@task(name="save model")
def save(work: Path, params: Path, calibration: Path, output: Path, method: str) -> dict[str, Any]:
    """Save the shallower model; returns the record in its elder.json."""
    run_stage(
        *("finish", "--work", work, "--params", params, "--calibration", calibration),
        *("--output", output, "--method", method),
    )
    return _read(output / "elder.json")


@task(name="evaluate", task_run_name="evaluate {row}")
def evaluate(row: str, model: str | Path, params: Path, result: Path) -> dict[str, Any]:
    """Evaluate a model of this run."""
    run_stage("evaluate", model, "--params", params, "--result", result)
    return _read(result)


@task(
    name="evaluate dense",
    persist_result=True,
    result_serializer="json",
    cache_key_fn=lambda _, arguments: f"elder-dense-{arguments['key']}",
)
def evaluate_dense(key: str, model: str, params: Path, result: Path) -> dict[str, Any]:
    """Evaluate the dense model, unless the same weights were evaluated under the same protocol before."""
    run_stage("evaluate", model, "--params", params, "--result", result)
    return _read(result)


@task(name="measure speed")
def measure_speed(dense: str, pruned: Path, params: Path, result: Path) -> dict[str, Any]:
    """Measure both models side by side, and check the shallower one's generation."""
    run_stage("bench", dense, pruned, "--params", params, "--result", result)
    return _read(result)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
