"""Train a model with one section's settings: choose what is ``auto`` on held-out blocks, then run, within one budget.

The budget is ``epochs`` passes over the calibration blocks. Where anything is ``auto``, a share of it goes to short
trials, each from the same weights; the rest goes to the final run, on all blocks. What is best for a short run is too
much for a long one, so a learning rate that was found is lowered by the known power of the steps.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from elder import params
from elder.errors import UserError
from elder.model.forward import block_losses
from elder.training.loop import LossFunction, Schedule, Spent, StepHook, train
from elder.training.search import Snapshot, hold_out, search

LR_GRID = (0.005, 0.01, 0.02)  # relative to the root mean square of each weight
ADAPTER_LR_GRID = (
    3e-4,
    1e-3,
    3e-3,
)  # absolute: adapters start at 0, and a share of that is nothing
SEARCH_SHARE = 0.2  # of the budget, for all trials together
LONGER_RUN = 0.32  # the best learning rate falls with the steps of a run to this power (arXiv 2409.19913)
LossBuilder = Callable[[dict[str, float]], LossFunction]  # chosen values -> loss of a batch


def tune(
    stage: str,
    model: Any,
    blocks: torch.Tensor,
    settings: params.Training,
    grids: Mapping[str, tuple[float, ...]],
    loss_with: LossBuilder,
    seed: int,
    compute: torch.dtype,
    judge: Callable[[torch.Tensor], float] | None = None,
    checkpoint: Path | None = None,
    at_step: StepHook | None = None,
) -> Spent:
    """Train in place.

    Args:
        stage: name for the record.
        model: weights in float32.
        blocks: calibration blocks, (samples, seq_len).
        settings: epochs, batch, learning rate or ``auto``, and the rest.
        grids: candidates for each value that is ``auto``, the learning rate among them where it is.
        loss_with: builds the loss from the chosen values; gets ``lr`` and whatever else ``grids`` names.
        seed: of the order of blocks.
        compute: dtype of the forward pass.
        judge: held-out blocks -> loss, for a trial; by default the next-token loss.
        checkpoint: where the final run is kept while it goes on.
        at_step: called before each step of the run, and of each trial, with the share of its steps.

    Returns:
        What was spent, search included.

    Raises:
        UserError: if the loss does not stay finite, or the model cannot do what is asked.
    """

    def schedule(values: dict[str, float], epochs: float, count: int) -> Schedule:
        steps = max(1, int(epochs * count / settings.batch))  # never over the budget
        lr = values["lr"] if "lr" in values else float(settings.lr)
        relative = "lr" in values and not settings.adapter_rank
        kind = "adamw" if settings.adapter_rank else settings.optimizer
        return Schedule(
            steps,
            settings.batch,
            kind,
            lr,
            relative,
            settings.warmup,
            settings.weight_decay,
            seed,
        )

    thrifty = checkpointing(model) if settings.gradient_checkpointing else nullcontext()
    with trainable(model, settings.adapter_rank, seed) as trained, thrifty:
        epochs = settings.epochs
        candidates = [
            dict(zip(grids, values, strict=True))
            for values in itertools.product(*grids.values())
        ]
        chosen, found = candidates[0], Spent()
        plan = schedule(chosen, epochs, len(blocks))
        if len(candidates) > 1:
            fit, held = hold_out(blocks)
            start = Snapshot(trained)

            def trial_plan(values: dict[str, float]) -> Schedule:
                return schedule(
                    values,
                    epochs * SEARCH_SHARE / len(candidates) * len(blocks) / len(fit),
                    len(fit),
                )

            def trial(values: dict[str, float]) -> tuple[float, Spent]:
                start.restore(trained)
                plan = trial_plan(values)
                label = f"{stage}, trying {', '.join(f'{k} {v:g}' for k, v in values.items())}"
                spent = train(
                    trained, fit, loss_with(values), plan, compute, label, None, at_step
                )
                loss = (
                    judge(held)
                    if judge
                    else block_losses(trained, held, settings.batch, compute).mean().item()
                )
                return loss, spent

            chosen, found = search(stage, candidates, trial)
            start.restore(trained)
            longer = schedule(chosen, epochs * (1 - SEARCH_SHARE), len(blocks))
            plan = replace(
                longer,
                lr=longer.lr * lowered(trial_plan(chosen).steps, longer.steps, "lr" in chosen),
            )
        spent = train(
            trained, blocks, loss_with(chosen), plan, compute, stage, checkpoint, at_step
        )
        if not math.isfinite(spent.curve[-1]["loss"]):
            raise UserError(
                f"{stage} diverged with a learning rate of {plan.lr:g}: set {stage}.lr lower"
            )
    spent.tokens_seen += found.tokens_seen
    spent.optimizer_steps += found.optimizer_steps
    spent.search = found.search
    return spent


def lowered(trial: int, steps: int, searched: bool) -> float:
    """Return the factor on a learning rate found in a trial of ``trial`` steps, for a run of ``steps``."""
    return min(1.0, (trial / steps) ** LONGER_RUN) if searched else 1.0


def lr_grid(settings: params.Training) -> dict[str, tuple[float, ...]]:
    """Return the learning rates to try, none where one is given."""
    if settings.lr != "auto":
        return {}
    return {"lr": ADAPTER_LR_GRID if settings.adapter_rank else LR_GRID}


@contextmanager
def checkpointing(model: Any) -> Any:
    """Keep only what enters each layer for the backward pass, and compute the rest again: less memory, more time.

    Raises:
        UserError: if this family of models cannot.
    """
    # the older names, all that transformers 5.17 has, warn in newer versions
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    except ValueError as error:
        raise UserError(f"{error} Set gradient_checkpointing to false.") from None
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
        model.disable_input_require_grads()  # enabling asked for gradients of the embeddings' output, too


@contextmanager
def trainable(model: Any, adapter_rank: int, seed: int) -> Any:
    """Let all weights train, or LoRA adapters of a rank that are merged into the weights at the end."""
    if not adapter_rank:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        yield model
        return
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(
        r=adapter_rank,
        lora_alpha=2 * adapter_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    yield adapted
    adapted.merge_and_unload()
