"""The GPU tasks: each takes a slot of the ``gpu`` concurrency limit and runs one stage of the library as a subprocess.

A process of its own is the only way that GPU memory is surely freed, and a crash there leaves the flow alive.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect import task

from elder.errors import CRASHED, KILLED, NEED_LESS, Crash, UserError
from elder.files import read_json
from elder.process import CPU_SETTINGS
from elder.progress import say
from elder.record import CompressionRecord, Json, Speed
from elder.training.micro_batch import SMALLER
from tasks.run.run import Run
from tasks.run.slots import gpu_slot


def run_stage(*arguments: str | Path) -> None:
    """Run ``python -m elder stage ...`` in a slot of the gpu limit, its progress going to this process's stderr.

    The stage ends when its stdin does, so that it does not live on, writing to the same files as the next attempt, when
    this process is killed. One that the system kills, as it does where memory runs out, goes on once more with half as
    many blocks at once; so does one of whose processes one is killed, where there are several (``launch.processes``).

    Raises:
        UserError: what the stage refused.
        Crash: if it failed otherwise, or was killed.
    """
    with gpu_slot():
        end = _end_of_stage(arguments, {})
        if end.was_killed:
            how = f" {KILLED}" if end.sentence is None else f": {end.sentence}"
            say(
                f"stage {arguments[0]}{how}: it goes on with half as many blocks at once"
            )
            end = _end_of_stage(arguments, {SMALLER: "1"})
    if end.sentence is not None:
        raise Crash(f"stage {arguments[0]}: {end.sentence}")
    if end.status:
        raise Crash(
            f"stage {arguments[0]} {_how(end.status)}; what it had finished is kept, run again to go on"
        )


@dataclass(frozen=True)
class End:
    """How a stage ended: its exit status, and the sentence that it left where one of its processes was killed."""

    status: int
    sentence: str | None = None

    @property
    def was_killed(self) -> bool:
        """Say whether its process, or one of several, was killed."""
        return self.status == -signal.SIGKILL or self.sentence is not None


def _end_of_stage(arguments: tuple[str | Path, ...], more: Mapping[str, str]) -> End:
    """Run a stage to its end, ``more`` standing in its environment.

    Raises:
        UserError: what the stage refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        sentence = Path(folder) / "error"
        own = {"ELDER_ERROR_FILE": str(sentence), **more}
        with subprocess.Popen(
            [sys.executable, "-m", "elder", "stage", *map(str, arguments)],
            env=CPU_SETTINGS | os.environ | own,
            stdin=subprocess.PIPE,
            stdout=sys.stderr,
        ) as stage:
            status = stage.wait()
        told = sentence.read_text(encoding="utf-8") if sentence.exists() else None
    if told is not None and status != CRASHED:
        raise UserError(told)
    return End(status, told)


def _how(status: int) -> str:
    """Say how a stage ended, and what may help."""
    if status == -signal.SIGKILL:
        return f"{KILLED}: {NEED_LESS}"
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"failed with exit status {status}, for the reason shown above"


@task(name="try tasks")
def try_tasks(run: Run) -> None:
    """Try one item of each task on the dense model, before any work that would be in vain."""
    if run.settings.evaluate.tasks:
        result = run.result("trial")
        run_stage("try", run.source, "--params", run.stage_params, "--result", result)


@task(name="compression stage", task_run_name="{names}")
def compression_stage(
    names: str, work: Path, params: Path, blocks: Path
) -> dict[str, Json]:
    """Run one or more stages of a compression (comma-separated); returns the last one's result."""
    run_stage("job", names, "--work", work, "--params", params, "--calibration", blocks)
    return read_json(work / f"{names.split(',')[-1]}.json")


@task(name="save model")
def save(run: Run) -> CompressionRecord:
    """Save the shallower model; returns the record in its elder.json."""
    run_stage(
        *("finish", "--work", run.work, "--params", run.stage_params),
        *("--calibration", run.blocks, "--output", run.model, "--method", run.method),
    )
    return CompressionRecord.model_validate(read_json(run.model / "elder.json"))


@task(name="evaluate", task_run_name="evaluate {name}")
def evaluate(
    name: str, model: str | Path, params: Path, result: Path
) -> dict[str, Json]:
    """Evaluate a model of a run."""
    run_stage("evaluate", model, "--params", params, "--result", result)
    return read_json(result)


@task(
    name="evaluate dense",
    persist_result=True,
    result_serializer="json",
    cache_key_fn=lambda _, arguments: f"elder-dense-{arguments['key']}",
)
def evaluate_dense(key: str, run: Run) -> dict[str, Json]:
    """Evaluate the dense model, unless the same weights were evaluated under the same protocol before.

    Plain values come back, which outlive this version in Prefect's storage.
    """
    result = run.result("dense")
    run_stage("evaluate", run.source, "--params", run.stage_params, "--result", result)
    return read_json(result)


@task(name="measure speed")
def measure_speed(run: Run) -> Speed:
    """Measure both models side by side, and try what else the gate asks of the shallower one."""
    result = run.result("speed")
    run_stage(
        *("bench", run.source, run.model),
        *("--params", run.stage_params, "--result", result),
    )
    return Speed.model_validate(read_json(result))
