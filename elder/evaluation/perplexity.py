"""What a model is worth: perplexity on texts, and tasks of lm-evaluation-harness (lm-eval) run on the model in memory.

Two results may be compared when their `protocol` is the same.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from elder import params
from elder.data import evaluation_blocks
from elder.device import device_of_model
from elder.evaluation.tasks import run_tasks
from elder.fingerprint import folder_digest, package_version, text_digest
from elder.model.forward import block_losses
from elder.model.load import Loaded
from elder.progress import track

__all__ = [
    "evaluate",
    "perplexity",
    "perplexity_of_text",
    "protocol",
    "run_tasks",
    "task_mean",
]

PROTOCOL = 1  # raised whenever the way of measuring changes: what was measured before is then not comparable


def perplexity(loaded: Loaded, blocks: torch.Tensor, batch: int) -> dict[str, Any]:
    """Measure perplexity over separate blocks: exp of the mean next-token loss.

    Args:
        loaded: the model.
        blocks: token ids, (blocks, seq_len), int64; no block sees another.
        batch: blocks in a batch.

    Returns:
        ``perplexity``; ``stderr`` by the delta method from the spread of the blocks, or None for a single block;
        ``nll``, the mean loss in nats; ``tokens`` (blocks x seq_len) and ``blocks``.
    """
    return summary(losses_of(loaded, blocks, batch), blocks.numel())


def losses_of(loaded: Loaded, blocks: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the mean next-token loss of each block in nats, (blocks,) float64; see `perplexity`."""
    batches = blocks.split(batch)
    return torch.cat(
        [
            block_losses(loaded.model, ids, batch)
            for ids in track(batches, "perplexity", len(batches))
        ]
    )


def summary(losses: torch.Tensor, tokens: int) -> dict[str, Any]:
    """Sum up the losses of blocks as `perplexity` describes it."""
    mean = losses.mean()
    value = mean.exp()  # infinite, and no error, where the model is utterly broken
    stderr = float(value * losses.std() / math.sqrt(len(losses))) if len(losses) > 1 else None
    return {
        "perplexity": float(value),
        "stderr": stderr,
        "nll": float(mean),
        "tokens": tokens,
        "blocks": len(losses),
    }


def perplexity_of_text(
    loaded: Loaded, path: Path, seq_len: int, max_tokens: int | None, batch: int
) -> dict[str, Any]:
    """Measure perplexity on a text in consecutive blocks; see `perplexity`.

    Raises:
        UserError: if the text is missing, empty, not UTF-8, or shorter than one block.
    """
    return perplexity(
        loaded, evaluation_blocks(path, loaded.tokenizer, seq_len, max_tokens), batch
    )


def task_mean(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None] | None:
    """Return the mean over leaf tasks, each of equal weight, and its standard error for independent tasks.

    Metrics of which less is better, such as perplexities, stay out; None if nothing is left.
    """
    counted = [task for task in tasks.values() if task.get("higher_is_better", True)]
    if not counted:
        return None
    errors = [task["stderr"] for task in counted]
    stderr = (
        None if None in errors else math.sqrt(sum(error**2 for error in errors)) / len(errors)
    )
    return {"value": sum(task["value"] for task in counted) / len(counted), "stderr": stderr}


def protocol(
    evaluate: params.Evaluate, loaded: Loaded, texts: Mapping[str, Path], seq_len: int
) -> dict[str, Any]:
    """Describe what two results must share to be comparable; needs no run of the model and no import of lm-eval.

    Digests stand for the texts, the tokenizer and the whole folder of task data; lm-eval's version stands for its own
    task definitions. Data that lm-eval fetches from the Hub are not pinned by it.

    Args:
        evaluate: the settings.
        loaded: its tokenizer, dtype and kind of device count, its weights do not.
        texts: {domain: path}.
        seq_len: tokens in a block.

    Raises:
        UserError: if a text or the folder of task data is missing.
    """
    found: dict[str, Any] = {
        "version": PROTOCOL,
        "texts": {domain: text_digest(Path(path)) for domain, path in texts.items()},
        "seq_len": seq_len,
        "max_tokens": evaluate.max_tokens,
        "tasks": list(evaluate.tasks),
        "task_data": folder_digest(Path(evaluate.task_data))
        if evaluate.tasks and evaluate.task_data
        else None,
        "limit": evaluate.limit,
        "lm_eval": package_version("lm_eval") if evaluate.tasks else None,
        "tokenizer": _tokenizer_digest(loaded.tokenizer),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": device_of_model(loaded.model).type,
    }
    return found | {
        "protocol_digest": hashlib.sha256(
            json.dumps(found, sort_keys=True).encode()
        ).hexdigest()
    }


def evaluate(loaded: Loaded, settings: params.Evaluate, seq_len: int) -> dict[str, Any]:
    """Measure all that the settings ask for on one model.

    Returns:
        ``perplexity`` {domain: as `perplexity`}, ``tasks`` as `run_tasks`, ``task_mean`` as `task_mean`,
        ``protocol`` as `protocol`, and ``seconds``.

    Raises:
        UserError: as `perplexity_of_text` and `run_tasks`.
    """
    return evaluate_by_block(loaded, settings, seq_len)[0]


def evaluate_by_block(
    loaded: Loaded, settings: params.Evaluate, seq_len: int
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Measure as `evaluate`, and return beside it {domain: the loss of each block, (blocks,) float64}.

    The blocks of a text are the same for every model of one tokenizer, so that two models can be compared in pairs.
    """
    started = time.perf_counter()
    texts = {
        "in_domain": Path(settings.in_domain),
        "out_of_domain": Path(settings.out_of_domain),
    }
    shared = protocol(settings, loaded, texts, seq_len)
    folder = Path(settings.task_data) if settings.task_data else None
    tasks = run_tasks(loaded, settings.tasks, folder, settings.limit, settings.batch)
    losses = {
        domain: losses_of(
            loaded,
            evaluation_blocks(path, loaded.tokenizer, seq_len, settings.max_tokens),
            settings.batch,
        )
        for domain, path in texts.items()
    }
    found = {
        "perplexity": {
            domain: summary(values, len(values) * seq_len) for domain, values in losses.items()
        },
        "tasks": tasks,
        "task_mean": task_mean(tasks),
        "protocol": shared,
        "seconds": time.perf_counter() - started,
    }
    return found, losses


def _tokenizer_digest(tokenizer: Any) -> str:
    """Return the sha256 over a tokenizer's definition; how it pads and truncates at the moment does not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tree = json.loads(backend.to_str()) if backend else {"vocab": tokenizer.get_vocab()}
    tree.pop("padding", None)
    tree.pop("truncation", None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
