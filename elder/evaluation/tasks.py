"""Tasks of lm-evaluation-harness (lm-eval), run on a model in memory, with local data and without the network.

lm-eval is imported only where a task is run or looked up.
"""

import contextlib
import copy
import functools
import io
import logging
import math
import os
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from elder.errors import UserError, nearest
from elder.evaluation.local_tasks import use_local_data
from elder.model.load import Loaded, context_length
from elder.progress import meter

FEWSHOT_SEED = 1234  # lm-eval's own default, so that its published figures can be repeated
BOOTSTRAP = 1000  # resamples, for the few metrics that have no formula for their standard error
# a YAML line whose whole value may name a task, group or tag
NAMED = re.compile(
    r"""^(?:["']?(?:task|group|tag)["']?:|[ \t]*-)[ \t]*["']?([^\s"',:]+)["']?,?[ \t]*$""",
    re.MULTILINE,
)


def run_tasks(
    loaded: Loaded, names: Iterable[str], task_data: Path | None, limit: int | None, batch: int
) -> dict[str, dict[str, Any]]:
    """Run lm-eval tasks on the model in memory.

    Args:
        loaded: the model and its tokenizer; neither is changed.
        names: tasks, groups or tags: those defined below ``task_data`` first, then lm-eval's own.
        task_data: folder of task definitions and data, and the working directory meanwhile: paths in definitions are
            relative to it, a folder in it named like a Hub dataset (owner/name) stands in for that dataset, and so do
            files as `elder.evaluation.local_tasks` describes them.
        limit: the first items of each task only; None takes all.
        batch: sequences in a batch.

    Returns:
        For each leaf task its ``metric`` (acc where there is one, else the first with a standard error), ``value``,
        ``stderr`` (None where lm-eval has none), ``version`` and ``higher_is_better``.

    Raises:
        UserError: if lm-eval is not installed, a task is unknown, or its data cannot be loaded.
    """
    names = list(dict.fromkeys(names))
    if not names:
        return {}
    _need_lm_eval()
    from lm_eval.evaluator import evaluate as run

    scorer = _scorer(loaded, batch)
    with _undisturbed(task_data):
        tasks = _load_tasks(names, task_data)
        found = run(scorer, tasks, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False)
    return {
        name: _headline(found["results"][name], found["higher_is_better"][name])
        | {"version": found["versions"][name]}
        for name in tasks["tasks"]
    }


def check_tasks(names: Iterable[str], task_data: Path | None) -> None:
    """Refuse tasks that nobody has defined, before any model is loaded.

    Raises:
        UserError: if lm-eval is not installed, a task is unknown, or there is no folder ``task_data``.
    """
    names = list(names)
    if names:
        _need_lm_eval()
        with _undisturbed(task_data):
            _task_manager(names, task_data)


def _need_lm_eval() -> None:
    os.environ.setdefault(
        "DISABLE_MULTIPROC", "1"
    )  # else lm-eval forks a CUDA process to bootstrap
    try:
        import datasets
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"tasks need lm-eval, and {error.name} is missing; install it with: pip install 'lm-eval[hf]', "
            "or run no tasks with --set evaluate.tasks=[]"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = (
        False  # its ping is the one thing that local data would send out
    )


@contextlib.contextmanager
def _undisturbed(folder: Path | None) -> Iterator[None]:
    """Work in a folder, with what lm-eval prints kept off stdout and stderr, and its draws seeded."""
    import numpy as np

    if folder and not folder.is_dir():
        raise UserError(
            f"there is no folder of task data {str(folder)!r}; set evaluate.task_data"
        )
    random.seed(0)
    np.random.seed(FEWSHOT_SEED)
    inside = contextlib.chdir(folder) if folder else contextlib.nullcontext()
    with (
        inside,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield


def _scorer(loaded: Loaded, batch: int) -> Any:
    """Wrap the model for lm-eval, with our progress in place of its bars."""
    from lm_eval.models.huggingface import HFLM

    stderr = sys.stderr

    class Scorer(HFLM):
        def _loglikelihood_tokens(
            self, requests: list, disable_tqdm: bool = False, override_bs: Any = None
        ) -> list:
            with contextlib.redirect_stderr(stderr), meter("tasks", len(requests)) as self.step:
                return super()._loglikelihood_tokens(
                    requests, disable_tqdm=True, override_bs=override_bs
                )

        def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            logits = super()._model_call(inps, *args, **kwargs)
            self.step(steps=len(inps))
            return logits

    tokenizer = copy.deepcopy(
        loaded.tokenizer
    )  # lm-eval adds a padding token where there is none
    longest = context_length(loaded.model)
    return Scorer(
        pretrained=loaded.model, tokenizer=tokenizer, batch_size=batch, max_length=longest
    )


def _load_tasks(names: list[str], folder: Path | None) -> Any:
    """Load tasks with their data, and set what lm-eval's `simple_evaluate` would; that also lists all packages: 1 s."""
    manager = _task_manager(names, folder)
    try:
        found = manager.load(names)
    except (
        Exception
    ) as error:  # datasets, the Hub client, jinja and lm-eval each raise their own types
        first = str(error).strip().split("\n")[0][:300] or type(error).__name__
        hint = (
            "; or put its data into a folder of that name in task_data"
            if isinstance(error, ConnectionError)
            else ""
        )
        raise UserError(
            f"the tasks {', '.join(names)} cannot be loaded: {first}{hint}"
        ) from None
    for task in found["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return found


def _task_manager(names: list[str], folder: Path | None) -> Any:
    """Return a task manager that knows the local tasks and, of lm-eval's own, only the folders that are needed."""
    from lm_eval.tasks import TaskManager

    local = [str(Path.cwd())] if folder else []  # last, so that a local definition wins
    folders: set[str] = set()
    while True:
        manager = TaskManager(include_path=[*sorted(folders), *local], include_defaults=False)
        missing = _reachable(names, manager.task_index) - set(manager.task_index)
        more = {
            place for name in missing for place in _builtin_folders().get(name, ())
        } - folders
        if not more:
            break
        folders |= more
    unknown = next((name for name in names if name not in manager.task_index), None)
    if unknown:
        local_names = TaskManager(include_path=local, include_defaults=False).all_tasks
        raise UserError(
            f"there is no task {unknown!r} here or in lm-eval; {nearest(unknown, local_names or names)}"
        )
    if folder:
        for name in _reachable(names, manager.task_index):
            entry = manager.task_index.get(name)
            if (
                entry and entry.yaml_path and not entry.yaml_path.is_relative_to(Path.cwd())
            ):  # lm-eval's own
                use_local_data(entry, Path.cwd())
    return manager


def _reachable(names: Iterable[str], index: Mapping[str, Any]) -> set[str]:
    """Return names, and the names of all members of the groups among them."""
    found: set[str] = set()
    rest = list(names)
    while rest:
        name = rest.pop()
        if name in found:
            continue
        found.add(name)
        entry = index.get(name)
        members = (entry.cfg or {}).get("task") if entry else None
        if entry and entry.kind.name == "TAG":
            members = sorted(entry.tags)
        for member in members if isinstance(members, list) else []:
            rest.append(
                member
                if isinstance(member, str)
                else str(member.get("group") or member.get("task"))
            )
    return found


@functools.cache
def _builtin_folders() -> dict[str, set[str]]:
    """Return {name: folders whose YAML says it} for lm-eval's own tasks; reading takes 1 s, its full index 16 s."""
    import lm_eval.tasks

    found: dict[str, set[str]] = {}
    for folder, _, files in os.walk(Path(lm_eval.tasks.__file__).parent):
        for file in files:
            if file.endswith("yaml"):
                text = Path(folder, file).read_text(encoding="utf-8", errors="replace")
                for name in NAMED.findall(text):
                    found.setdefault(name, set()).add(folder)
    return found


def _headline(found: Mapping[str, Any], higher_is_better: Mapping[str, bool]) -> dict[str, Any]:
    """Pick the metric that stands for a task out of lm-eval's ``{"acc,none": 0.5, "acc_stderr,none": 0.1, ...}``."""

    def error_of(key: str) -> float | None:
        metric, _, rest = key.partition(",")
        error = found.get(f"{metric}_stderr,{rest}")
        return float(error) if isinstance(error, int | float) and math.isfinite(error) else None

    keys = [
        key for key in found if "," in key and not key.partition(",")[0].endswith("_stderr")
    ]
    best = min(keys, key=lambda key: (not key.startswith("acc,"), error_of(key) is None))
    metric = best.partition(",")[0]
    better = bool(higher_is_better.get(metric, True))
    return {
        "metric": metric,
        "value": float(found[best]),
        "stderr": error_of(best),
        "higher_is_better": better,
    }
