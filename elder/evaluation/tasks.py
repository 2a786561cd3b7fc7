"""Tasks of lm-evaluation-harness (lm-eval), run on a model in memory, with local data and without the network.

lm-eval is imported only where a task is run or looked up.
"""

import contextlib
import copy
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from elder.device import is_out_of_memory
from elder.errors import UserError
from elder.evaluation.harness import TextsBegin, need_lm_eval, undisturbed
from elder.evaluation.task_index import load_tasks, task_manager
from elder.model.finite import refuse_broken_losses
from elder.model.load import Loaded, context_length
from elder.progress import meter
from elder.record import TaskResult
from elder.training.micro_batch import MicroBatch

BOOTSTRAP = (
    1000  # resamples, for the few metrics that have no formula for their standard error
)


def run_tasks(
    loaded: Loaded,
    names: Iterable[str],
    task_data: Path | None,
    limit: int | None,
    batch: int,
) -> dict[str, TaskResult]:
    """Run lm-eval tasks on the model in memory.

    Args:
        loaded: the model and its tokenizer; neither is changed.
        names: tasks, groups or tags: those defined below ``task_data`` first, then lm-eval's own.
        task_data: folder of task definitions and data, and the working directory meanwhile: paths in definitions are
            relative to it, a folder in it named like a Hub dataset (owner/name) stands in for that dataset, and so do
            files as `elder.evaluation.local_tasks` describes them.
        limit: the first items of each task only; None takes all.
        batch: sequences in a batch; where memory does not suffice, the tasks begin anew with half as many.

    Returns:
        {leaf task: its headline: acc where there is one, else the first metric with a standard error}.

    Raises:
        UserError: if lm-eval is not installed, a task is unknown, its data cannot be loaded, it fails on this model, or
            the model puts out what is not finite.
    """
    names = list(dict.fromkeys(names))
    if not names:
        return {}
    need_lm_eval()
    at_once = MicroBatch("evaluation on tasks", batch)
    return at_once.attempt(partial(_scores, loaded, names, task_data, limit))


def _scores(
    loaded: Loaded,
    names: list[str],
    task_data: Path | None,
    limit: int | None,
    batch: int,
) -> dict[str, TaskResult]:
    """Run tasks from the beginning; see `run_tasks`."""
    from lm_eval.evaluator import evaluate

    results = {}
    with undisturbed(task_data):
        tasks = load_tasks(names, task_data)
        _refuse_without_ends(loaded, tasks["tasks"])
        scorer = _scorer(loaded, batch)
        refuse_long_answers(tasks["tasks"], scorer.max_length, scorer.max_gen_toks)
        with _plain_failures(names):
            told = evaluate(
                scorer, tasks, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False
            )
            for name in tasks["tasks"]:
                better, version = told["higher_is_better"][name], told["versions"][name]
                results[name] = headline(told["results"][name], better, version)
    return results


def try_tasks(
    loaded: Loaded,
    names: Iterable[str],
    task_data: Path | None,
    limit: int | None,
    batch: int,
) -> None:
    """Try one item of each task, and make the prompts of all: what fails does so before the work, and not after it.

    Args:
        loaded: the dense model.
        names: as in `run_tasks`.
        task_data: as in `run_tasks`.
        limit: as in `run_tasks`.
        batch: sequences in a batch.

    Raises:
        UserError: as in `run_tasks`, naming the task.
    """
    for name in dict.fromkeys(names):
        run_tasks(loaded, [name], task_data, limit=1, batch=batch)
        with undisturbed(task_data), _plain_failures([name]):
            for task in load_tasks([name], task_data)["tasks"].values():
                _refuse_empty_items(task, limit)


def _refuse_empty_items(task: Any, limit: int | None) -> None:
    """Refuse a task with an item that asks the model nothing, on which its metrics would fail at the end."""
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    asked = {request.doc_id for request in task.instances}
    for number, _ in task.doc_iterator(rank=0, limit=limit, world_size=1):
        if number not in asked:
            raise UserError(
                f"item {number} of the task {task.config.task!r} has no answers to choose from; mend its data, or "
                "leave it out of evaluate.tasks"
            )


def _refuse_without_ends(loaded: Loaded, tasks: Mapping[str, Any]) -> None:
    """Refuse tasks that need tokens which this tokenizer does not have."""
    tokenizer = loaded.tokenizer
    if tokenizer.eos_token_id is not None:
        return
    writing = [
        name
        for name, task in tasks.items()
        if task.get_config("output_type") == "generate_until"
    ]
    if writing or tokenizer.bos_token_id is None:
        raise UserError(
            f"the tokenizer of {loaded.name!r} has no end-of-text token, which lm-eval needs for the tasks "
            f"{', '.join(writing or tasks)}: name its eos_token in tokenizer_config.json, or leave out evaluate.tasks"
        )


def refuse_long_answers(tasks: Mapping[str, Any], context: int, default: int) -> None:
    """Refuse tasks whose answers may fill the model's context, so that no prompt has a place in it.

    Args:
        tasks: {name: task of lm-eval}.
        context: tokens that the model can look at.
        default: tokens of an answer where a task does not say.

    Raises:
        UserError: naming the first of them.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    for name, task in tasks.items():
        if task.get_config("output_type") != "generate_until":
            continue
        said = task.get_config("generation_kwargs") or {}
        longest = normalize_gen_kwargs(said, default)["max_gen_toks"]
        if longest >= context:
            raise UserError(
                f"the task {name!r} lets a model write {longest} tokens (max_gen_toks), and this model's context has "
                f"{context}: define the task below evaluate.task_data with less than that, or leave it out of "
                "evaluate.tasks"
            )


@contextlib.contextmanager
def _plain_failures(names: list[str]) -> Iterator[None]:
    """Turn what a task's own code, its prompts or its metrics raise into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        first_line = str(error).strip().split("\n")[0][:300]
        raise UserError(
            f"the tasks {', '.join(names)} cannot be run on this model: {type(error).__name__}: {first_line}; "
            "mend their definition, or leave them out of evaluate.tasks"
        ) from None


def check_tasks(names: Iterable[str], task_data: Path | None) -> None:
    """Refuse tasks that nobody has defined, before any model is loaded.

    Raises:
        UserError: if lm-eval is not installed, a task is unknown, or there is no folder ``task_data``.
    """
    names = list(names)
    if names:
        need_lm_eval()
        with undisturbed(task_data):
            task_manager(names, task_data)


def headline(
    metrics: Mapping[str, Any],
    higher_is_better: Mapping[str, bool],
    version: float | str | None = None,
) -> TaskResult:
    """Pick the metric that stands for a task.

    Args:
        metrics: as lm-eval gives them: ``{"acc,none": 0.5, "acc_stderr,none": 0.1, ...}``.
        higher_is_better: {metric: whether more of it is better}.
        version: of the task.
    """
    keys = [
        key for key in metrics if "," in key and not _metric(key).endswith("_stderr")
    ]
    best = min(
        keys, key=lambda key: (_metric(key) != "acc", _error(metrics, key) is None)
    )
    metric = _metric(best)
    return TaskResult(
        metric=metric,
        value=float(metrics[best]),
        stderr=_error(metrics, best),
        version=version,
        higher_is_better=bool(higher_is_better.get(metric, True)),
    )


def _metric(key: str) -> str:
    return key.partition(",")[0]


def _error(metrics: Mapping[str, Any], key: str) -> float | None:
    """Return the standard error of a metric, None where lm-eval has none, as for a single item."""
    metric, _, filter_name = key.partition(",")
    error = metrics.get(f"{metric}_stderr,{filter_name}")
    if not isinstance(error, int | float) or not math.isfinite(error):
        return None
    return float(error)


def _scorer(loaded: Loaded, batch: int) -> Any:
    """Wrap the model for lm-eval, with our progress in place of its bars."""
    from lm_eval.models.huggingface import HFLM

    stderr = sys.stderr

    def refuse_broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at the logits that the next token of a text is chosen by; where they are nan, one would be, too."""
        # -inf is how generation forbids a token
        allowed = scores.masked_fill(scores.isneginf(), 0)
        refuse_broken_losses(loaded.model, ids, allowed)
        return scores

    class Scorer(TextsBegin, HFLM):
        bos = loaded.bos

        def _loglikelihood_tokens(
            self, requests: list, disable_tqdm: bool = False, override_bs: Any = None
        ) -> list:
            with (
                contextlib.redirect_stderr(stderr),
                meter("tasks", len(requests)) as self.step,
            ):
                return super()._loglikelihood_tokens(
                    requests, disable_tqdm=True, override_bs=override_bs
                )

        def _model_call(
            self, inps: torch.Tensor, *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            logits = super()._model_call(inps, *args, **kwargs)
            # lm-eval would count nan as an answer, and a right one where it comes first
            refuse_broken_losses(loaded.model, inps, logits)
            self.step(steps=len(inps))
            return logits

        def _model_generate(
            self, context: torch.Tensor, *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            return super()._model_generate(
                context, *args, logits_processor=[refuse_broken], **kwargs
            )

    return Scorer(
        pretrained=loaded.model,
        tokenizer=copy.deepcopy(loaded.tokenizer),  # lm-eval adds a padding token to it
        batch_size=batch,
        max_length=context_length(loaded.model),
        add_bos_token=False,  # what texts begin with is not left to the tokenizer
    )
