"""What a model is worth: perplexity on texts, and tasks of lm-evaluation-harness (lm-eval), under one protocol."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from elder import params
from elder.data import evaluation_blocks
from elder.evaluation.perplexity import losses_of, of_losses, text_tokens
from elder.evaluation.protocol import protocol, texts_of
from elder.evaluation.tasks import run_tasks
from elder.model.load import Loaded, block_length, check_tokens, parameter_count
from elder.record import Domain, Evaluation, Mean, Perplexity, TaskResult


def evaluate(loaded: Loaded, settings: params.Evaluate, seq_len: int) -> Evaluation:
    """Measure all that the settings ask for on one model.

    Args:
        loaded: the model.
        settings: texts, tasks and limits.
        seq_len: tokens in a block.

    Raises:
        UserError: as `perplexity_of_text` and `run_tasks`.
    """
    return evaluate_by_block(loaded, settings, seq_len)[0]


def evaluation_length(settings: params.Params, loaded: Loaded) -> int:
    """Return the tokens in an evaluation block: ``evaluate.seq_len``, which is by default as in calibration.

    Raises:
        UserError: if that is longer than the model's context.
    """
    asked = settings.evaluate.seq_len
    if asked == "auto":
        asked = settings.calibration.seq_len
    return block_length(asked, loaded.model)


def evaluate_by_block(
    loaded: Loaded, settings: params.Evaluate, seq_len: int
) -> tuple[Evaluation, dict[Domain, torch.Tensor]]:
    """Measure as `evaluate`, and return beside it {domain: the loss of each block, (blocks,) float64}.

    The blocks of a text are the same for every model of one tokenizer, so that two models can be compared in pairs.
    """
    started = time.perf_counter()
    shared = protocol(settings, loaded, seq_len)
    folder = Path(settings.task_data) if settings.task_data else None
    tasks = run_tasks(loaded, settings.tasks, folder, settings.limit, settings.batch)
    losses: dict[Domain, torch.Tensor] = {}
    perplexity: dict[str, Perplexity] = {}
    for domain, path in texts_of(settings).items():
        blocks = evaluation_blocks(
            path, loaded.tokenizer, seq_len, settings.max_tokens, loaded.bos
        )
        check_tokens(loaded, blocks, path)
        losses[domain] = losses_of(loaded, blocks, settings.batch)
        perplexity[domain] = of_losses(losses[domain], text_tokens(loaded, blocks))
    evaluation = Evaluation(
        perplexity=perplexity,
        tasks=tasks,
        task_mean=task_mean(tasks),
        protocol=dict(shared.parts),
        protocol_digest=shared.digest,
        seconds=time.perf_counter() - started,
        parameters=parameter_count(loaded.model),
    )
    return evaluation, losses


def task_mean(tasks: Mapping[str, TaskResult]) -> Mean | None:
    """Return the mean over leaf tasks, each of equal weight, and its standard error for independent tasks.

    Metrics of which less is better, such as perplexities, stay out; None if nothing is left.
    """
    counted = [task for task in tasks.values() if task.higher_is_better]
    if not counted:
        return None
    values = [task.value for task in counted]
    errors = [task.stderr for task in counted]
    return Mean(value=_mean(values), stderr=_error_of_mean(errors))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sum(known) / len(known)


def _error_of_mean(errors: list[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None
    squares = sum(error**2 for error in known)
    return math.sqrt(squares) / len(known)
