"""Which layers of a model go: how many, which may not, and what the selection method says of the others."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from elder import params
from elder.compression.results import Chosen
from elder.device import device_of_model, peak_memory_bytes
from elder.errors import UserError
from elder.model.layers import check_removal, find_layers, fixed_layers
from elder.model.load import Loaded
from elder.parallel.ranks import total
from elder.progress import say
from elder.record import Round, Scores, Spent
from elder.selection import Problem, Selection, run_method
from elder.training.flops import Counter
from elder.training.micro_batch import MicroBatch
from elder.training.synthesis import Writing, synthetic_blocks


def layers_to_remove(settings: params.Select, count: int) -> int:
    """Return how many of ``count`` layers go.

    Raises:
        UserError: if that is none or all of them, or a protected layer does not exist.
    """
    wrong = [index for index in settings.protect if not 0 <= index < count]
    if wrong:
        raise UserError(
            f"cannot protect layer {wrong[0]}: the model has layers 0 to {count - 1}"
        )
    wanted = (
        settings.layers
        if settings.layers is not None
        else round(settings.ratio * count)
    )
    if not 0 < wanted < count:
        asked = (
            "layers"
            if settings.layers is not None
            else f"ratio {settings.ratio:g} rounds to {wanted}:"
        )
        raise UserError(
            f"{asked} {wanted} of {count} layers cannot be removed; remove 1 to {count - 1} of them"
        )
    return wanted


def layers_to_keep(model: nn.Module, settings: params.Select) -> frozenset[int]:
    """Return the layers not offered for removal: those protected, and those the configuration cannot do without.

    Args:
        model: the dense model; its weights are not looked at, so it may be on the meta device.
        settings: how many layers go, and which are protected.

    Raises:
        UserError: if fewer may go than should.
    """
    count = len(find_layers(model))
    wanted = layers_to_remove(settings, count)
    fixed = fixed_layers(model, wanted)
    kept = frozenset(settings.protect) | frozenset(fixed)
    if fixed:
        first, reason = min(fixed.items())
        if count - len(kept) < wanted:
            raise UserError(
                f"{wanted} of {count} layers cannot go, only {count - len(kept)} may: {reason}"
            )
        say(
            f"layers {sorted(fixed)} are not offered for removal; of layer {first}: {reason}"
        )
    return kept


def select_layers(
    loaded: Loaded, blocks: torch.Tensor, settings: params.Params
) -> Chosen:
    """Choose the layers that go.

    Args:
        loaded: the dense model.
        blocks: calibration blocks, (samples, seq_len) int64.
        settings: the section ``select``, and ``calibration.seed``.

    Raises:
        UserError: if the configuration cannot say the result: before the choice where that is certain, else after it.
    """
    chosen = settings.select
    count = loaded.num_layers
    problem = Problem(
        model=loaded.model,
        blocks=blocks,
        count=layers_to_remove(chosen, count),
        protected=layers_to_keep(loaded.model, chosen),
        settings=chosen.settings_of(chosen.method),
        seed=settings.calibration.seed,
        forward_batch=chosen.forward_batch,
        write=None
        if chosen.offload != "none"
        else partial(_write, loaded, blocks, settings.calibration.seed),
    )
    work = f"selection by {chosen.method}"
    at_once = MicroBatch.of_blocks(work, chosen.forward_batch, blocks.shape[1])
    with Counter() as counter:
        selection = at_once.attempt(
            lambda size: run_method(chosen.method, replace(problem, forward_batch=size))
        )
    _check_choice(loaded, selection)
    removed = list(selection.removed)
    say(
        f"{chosen.method} removes layers {', '.join(map(str, removed))} of 0 to {count - 1}"
    )
    return Chosen(
        num_layers=count,
        removed=removed,
        scores=_scores(selection),
        weights_learnt=selection.learnt,
        spent=_spent(selection),
        tokens=blocks.numel(),
        flops=round(total(counter.flops)),
        peak_memory_bytes=peak_memory_bytes(device_of_model(loaded.model)),
    )


def _write(loaded: Loaded, blocks: torch.Tensor, seed: int, count: int) -> torch.Tensor:
    """Let the dense model write blocks that begin with pieces of some, (count, seq_len) int64."""
    writing = Writing(count, seed, len(loaded.bos))
    return synthetic_blocks(loaded.model, blocks, writing)


def _check_choice(loaded: Loaded, selection: Selection) -> None:
    try:
        check_removal(loaded.model, selection.removed)
    except UserError as error:
        raise UserError(
            f"{error}; protect some of these layers, or remove another number of them"
        ) from None


def _scores(selection: Selection) -> Scores:
    rounds = []
    for one in selection.rounds:
        raced = {"blocks": list(one.blocks)} if one.blocks else {}
        rounds.append(
            Round(
                removed=list(one.removed),
                values=list(one.values),
                checked=list(one.checked),
                **raced,
            )
        )
    return Scores(name=selection.score, lower_goes=True, rounds=rounds)


def _spent(selection: Selection) -> Spent:
    return Spent(
        tokens_seen=selection.tokens_seen,
        optimizer_steps=selection.optimizer_steps,
        search=list(selection.search),
        tokens_generated=selection.tokens_generated,
    )
