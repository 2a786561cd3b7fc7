"""``elder`` in this very process: no Prefect server, stages in forks, waiting without time passing.

Prefect's part of a flow is small here: tasks are called one after the other, and tried again as they ask for it. What
is tried out is what they do. `whole` runs flows under Prefect, in processes of their own.
"""

import contextlib
import ctypes
import gc
import hashlib
import importlib
import os
import pickle
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from elder.files import whole_folder, write_text
from tests.chaos import forks

IMPORTS = (
    "boto3",
    "cyclonedx.output.json",
    "datasets",
    "elder.cli.stage",
    "elder.compression.compress",
    "elder.evaluation.evaluate",
    "elder.evaluation.speed",
    "flows.checks.doctor",
    "flows.cli.app",
    "flows.compress",
    "flows.run",
    "lm_eval.models.huggingface",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "model_signing",
    "psycopg",
    "tasks.audit.run",
    "tasks.registry.promotion",
    "tasks.store.s3",
    "transformers.models.llama.modeling_llama",
)
SPEED = 200.0  # waiting is so many times shorter
SHORTEST = 0.002  # seconds of waiting that are left as they are, for the sake of those who ask again and again
# beside the project: the folders that a run made which was stopped before its end, by the tasks that make them
MADE = {"prepare data": "data", "save model": "model"}
LEFT_OUT = (
    "prefect",
    "evaluation",
)  # checks: there is no Prefect, and lm-eval's list of tasks takes seconds
SETTLE = "settle"  # the first task of a run's end: what was found is about to be told


def elder(*arguments: str) -> None:
    """Run a command as people do; ends this process with its exit status."""
    from flows.cli import main

    sys.argv = ["elder", *arguments]
    main()


@dataclass
class Replay:
    """What the tasks of a run returned that come before its end, so that its end can be tried out many times.

    Attributes:
        results: of the tasks, in order; what lies in the run's folder is not among them.
    """

    results: list[Any] = field(default_factory=list)
    depth: int = 0
    called: int = 0

    @staticmethod
    def boundary(name: str, done: bool) -> None:
        """Is called before and after each task."""

    def call(self, task: Any, arguments: Any, named: Any) -> Any:
        """Call a task, or return what it returned before."""
        if self.depth:
            return _with_retries(task, arguments, named)
        self.boundary(task.name, False)
        if self.called < len(self.results):
            result = self.results[self.called]
            if task.name in MADE:
                _restore(arguments[0].folder, MADE[task.name])
        else:
            self.depth += 1
            result = _with_retries(task, arguments, named)
            self.depth -= 1
        self.called += 1
        self.boundary(task.name, True)
        return result


def _restore(run: Path, name: str) -> None:
    """Put a folder into a run's, as the task does whose result is known."""
    if not (run / name).exists():
        with whole_folder(run / name) as part:
            shutil.copytree(Path("..") / name, part, dirs_exist_ok=True)


def at_boundaries(call: Callable[[str, bool], None]) -> None:
    """Call a function before and after each task of this process, with its name and whether it is done."""
    Replay.boundary = staticmethod(call)


def read_replay(path: Path) -> Replay:
    """Return what a run wrote down that was stopped before its end."""
    return Replay(pickle.loads(path.read_bytes()))


def stop_before_end(path: Path) -> Replay:
    """Return a replay that writes down what tasks return, and ends this process before the first task of the end."""
    results: list[Any] = []

    class Recording(Replay):
        def call(self, task: Any, arguments: Any, named: Any) -> Any:
            if task.name == SETTLE and not self.depth:
                path.write_bytes(pickle.dumps(results))
                os._exit(0)
            result = super().call(task, arguments, named)
            if not self.depth:
                results.append(result)
            return result

    return Recording()


def without_prefect(replay: Replay) -> None:
    """Have this process call flows and tasks itself."""
    import prefect

    import flows.compress
    import flows.run
    import tasks.data
    import tasks.stage
    from flows.checks import doctor, inputs
    from tasks.provenance import lineage

    def call_task(task: Any, *arguments: Any, **named: Any) -> Any:
        return replay.call(task, arguments, named)

    def call_flow(flow: Any, *arguments: Any, **named: Any) -> Any:
        return flow.fn(*arguments, **named)

    prefect.Task.__call__ = call_task
    prefect.Flow.__call__ = call_flow
    flows.compress.ensure_gpu_limit = lambda: None
    flows.compress.crash_abandoned = lambda run_ids: None
    flows.run.end_server_with_this_process = lambda: None
    flows.run._start_server = lambda: None
    tasks.data.run_dvc = _data_in_forks
    tasks.stage.run_stage = _stage_in_fork
    lineage._installed = lambda: {"torch": "2", "transformers": "5"}
    lineage._cpu = lambda: "a processor"
    doctor.CHECKS = tuple(one for one in doctor.CHECKS if one.name not in LEFT_OUT)
    inputs.FREE_GIB = 0  # the disk is small here, and meant to run full


def let_time_fly() -> None:
    """Have this process wait for a small part of what it means to, and find the clock as if it had waited."""
    really_sleep, really_now, slept = time.sleep, time.monotonic, [0.0]

    def sleep(seconds: float) -> None:
        short = max(seconds / SPEED, min(seconds, SHORTEST))
        really_sleep(short)
        slept[0] += seconds - short

    def now() -> float:
        return really_now() + slept[0]

    time.sleep, time.monotonic = sleep, now


def checkpoint_always() -> None:
    """Have trainings write a checkpoint after every step, as if each took a minute."""
    from elder.training import checkpoint

    checkpoint.CHECKPOINT_EVERY = -1.0


def warm_up() -> None:
    """Import here, once, what the children need; nothing of it may start threads, which a fork would lose."""
    for name in IMPORTS:
        importlib.import_module(name)
    import prefect
    import torch

    _ = prefect.Task, prefect.Flow  # imported when they are asked for
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # or each child would touch, and so copy, all of it


def _with_retries(task: Any, arguments: Any, named: Any) -> Any:
    for left in reversed(range(task.retries + 1)):
        try:
            return task.fn(*arguments, **named)
        except Exception as error:
            again = task.retry_condition_fn
            if not left or (again and not again(task, None, _Failed(error))):
                raise
            time.sleep(task.retry_delay_seconds or 0)
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class _Failed:
    """Prefect's state of a task that failed, as far as conditions for another try look at it."""

    error: Exception

    def result(self) -> None:
        raise self.error


def _stage_in_fork(*arguments: str | Path) -> None:
    """Do as ``tasks.stage.run_stage`` does; the stage ends with the process that started it."""
    from elder.errors import Crash, UserError

    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "error"

        def stage() -> None:
            _die_with_parent()
            os.environ["ELDER_ERROR_FILE"] = str(told)
            with contextlib.suppress(KeyError):
                del os.environ["ELDER_SET"]
            _without_processes()
            elder("stage", *map(str, arguments))

        ending = forks.run(stage, Path(folder) / "output")
        sys.stderr.write(ending.said)
        if told.exists():
            raise UserError(told.read_text(encoding="utf-8"))
    if ending.status != 0:
        raise Crash(f"stage {arguments[0]} ended with {ending.status}")


def _data_in_forks(arguments: list[str], root: Path) -> None:
    """Do as ``dvc repro`` does with data that was never made, and nothing where it was."""
    pipeline = root / arguments[1]
    lock = pipeline.with_name("dvc.lock")
    if lock.exists():
        return
    stages = yaml.safe_load(pipeline.read_text())["stages"]
    for stage in stages.values():
        words = stage["cmd"].partition(" -m ")[2].split()

        def make(words: list[str] = words) -> None:
            _die_with_parent()
            sys.argv = words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)

        with tempfile.TemporaryDirectory() as folder:
            ending = forks.run(make, Path(folder) / "output")
        if ending.status != 0:
            raise RuntimeError(ending.said)
        stage["outs"] = [_output(root, path) for path in stage["outs"]]
    write_text(lock, yaml.safe_dump({"stages": stages}))


def _output(root: Path, path: str) -> dict[str, Any]:
    content = (root / path).read_bytes()
    return {"path": path, "md5": hashlib.md5(content).hexdigest(), "size": len(content)}


def _die_with_parent() -> None:
    death_signal = 1
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)


def _without_processes() -> None:
    """Leave out what ends a stage with its stdin, and the process that loads the result without this project."""
    import elder.cli.stage
    from elder.evaluation import plain_transformers, repetition
    from elder.record import LoadTrial

    elder.cli.stage.end_with_stdin = lambda: None
    repetition.NEW_TOKENS = 8
    trial = LoadTrial(ok=True, fault=None)
    plain_transformers.load_in_plain_transformers = lambda folder, trust: trial


def empty(folder: Path) -> None:
    """Remove all that a folder holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
