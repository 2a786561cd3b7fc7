"""The stages of one compression: learn, regularise, remove, compensate, recover. Each can be killed and run again.

A stage reads what the ones before it left in the work folder, and leaves its own result there: `elder.compression.job`.
``elder compress`` runs the stages in one process; a flow runs them in processes of their own. Both give the same bytes.

`STAGES`, at the end of this file, is the one list of them: a new stage is a function and a line there.
"""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from elder import params
from elder.compensation import (
    COMPENSATIONS,
    NONE,
    Pruned,
    compensate,
    refuse_unfit,
)
from elder.compression.choice import only_runs, refuse_offload
from elder.compression.job import Job, Stage
from elder.compression.results import Chosen, Compensated, Learnt, Removed, Trained
from elder.device import device_of_model, peak_memory_bytes
from elder.errors import UserError
from elder.files import file_digest
from elder.model.layers import (
    check_removal,
    find_layers,
    fixed_layers,
    remove_layers,
    twin,
)
from elder.model.load import Loaded, parameter_count, weights_digest
from elder.progress import say
from elder.record import Round, Scores, Spent
from elder.recovery import RECOVERIES, recover, student_of
from elder.selection import Problem, Selection, run_method
from elder.training.data import training_data
from elder.training.loop import TrainingRun
from elder.training.micro_batch import MicroBatch
from elder.training.regularise import regularise
from elder.training.synthesis import synthetic_blocks

SYNTHETIC = (
    "recover.synthetic.safetensors"  # what the dense model wrote, in the work folder
)


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
    )
    work = f"selection by {chosen.method}"
    at_once = MicroBatch.of_blocks(work, chosen.forward_batch, blocks.shape[1])
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
        peak_memory_bytes=peak_memory_bytes(device_of_model(loaded.model)),
    )


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
    )


def _learn(job: Job) -> Learnt:
    COMPENSATIONS.refuse_unknown(job.settings.compensate.method)  # before any work
    RECOVERIES.refuse_unknown(job.settings.recover.mode)
    refuse_offload(job.settings.select, job.settings.compensate.method)
    loaded = job.load(offload=job.settings.select.offload)
    blocks = job.blocks(loaded)
    refuse_unfit(job.settings.compensate.method, loaded.model, blocks)
    chosen = select_layers(loaded, blocks, job.settings)
    return Learnt(
        **dict(chosen),
        parameters=parameter_count(loaded.model),
        weights_sha256=weights_digest(loaded.model),
        revision=loaded.revision,
        dtype=str(loaded.dtype).removeprefix("torch."),
        seq_len=blocks.shape[1],
        calibration_sha256=file_digest(job.calibration),
        blocks_sha256=hashlib.sha256(blocks.numpy().tobytes()).hexdigest(),
        dequantised_from=loaded.dequantised_from,
        file_sha256=loaded.file_sha256,
    )


def _regularise(job: Job) -> Trained:
    settings = job.settings.regularise
    if not settings.epochs:
        return Trained()
    if settings.anneal and job.settings.compensate.method != NONE:
        raise UserError(
            f"regularise.anneal is {settings.anneal:g}: layers that fade out leave nothing to mend; "
            "set it to 0, or compensate.method to none"
        )
    if settings.anneal and settings.one_by_one:
        raise UserError(
            f"regularise.anneal is {settings.anneal:g} and regularise.one_by_one is true: layers fade out together or "
            "go one by one; set anneal to 0, or one_by_one to false"
        )
    removed = job.learnt.removed
    loaded = job.load(dtype=torch.float32)
    data = training_data(job.blocks(loaded))
    spent = regularise(
        loaded.model, removed, data, settings, _training_run(job, "regularise")
    )
    peak = peak_memory_bytes(loaded.model.device)
    job.keep("regularise", loaded)
    return Trained(spent=spent, peak_memory_bytes=peak)


def _remove(job: Job) -> Removed:
    loaded = job.load(job.folder("regularise"), _kept_dtype(job), device="cpu")
    remove_layers(loaded.model, job.learnt.removed)
    job.keep("remove", loaded)
    return Removed(
        parameters=parameter_count(loaded.model),
        num_layers=len(find_layers(loaded.model)),
    )


def _compensate(job: Job) -> Compensated:
    settings = job.settings.compensate
    if settings.method == NONE:
        return Compensated(compensation=None)
    at_once = MicroBatch(f"compensation by {settings.method}", settings.batch)
    return at_once.attempt(partial(_compensate_in_batches, job))


def _compensate_in_batches(job: Job, batch: int) -> Compensated:
    """Compensate a model that is loaded anew, which an attempt that ran out of memory may have changed."""
    settings, dtype = job.settings.compensate, _kept_dtype(job)
    shallow = job.load(job.folder("remove"), dtype)
    # what the layers were taken out of
    before = job.load(job.folder("regularise"), dtype)
    removed = tuple(job.learnt.removed)
    pruned = Pruned(
        model=shallow.model,
        dense=before.model,
        removed=removed,
        blocks=job.blocks(shallow),
        settings=settings.settings_of(settings.method),
        batch=batch,
        seed=job.settings.calibration.seed,
    )
    record = compensate(settings.method, pruned)
    peak = peak_memory_bytes(shallow.model.device)
    job.keep("compensate", shallow)
    return Compensated(compensation=record, spent=pruned.spent, peak_memory_bytes=peak)


def _is_idle(settings: params.Params) -> bool:
    """Say whether nothing is recovered."""
    return settings.recover.mode == NONE or not settings.recover.epochs


def _recover(job: Job) -> Trained:
    settings = job.settings.recover
    if _is_idle(job.settings):
        return Trained()
    recovery = RECOVERIES.find(settings.mode)
    shallow = job.folder("compensate") or job.folder("remove")
    dense = job.load() if recovery.teacher else None
    written = None
    # before the student takes its memory
    if dense is not None and settings.written:
        written = _written_text(job, dense)
    student = _student(job, shallow, dense)
    data = training_data(job.blocks(student), written)
    teacher = dense.model if dense else None
    learner = student_of(settings, student.model, teacher, job.learnt.removed)
    spent = recover(learner, data, settings, _training_run(job, "recover"))
    peak = peak_memory_bytes(student.model.device)
    job.keep("recover", student)
    return Trained(spent=spent, peak_memory_bytes=peak)


def _student(job: Job, shallow: Path | None, dense: Loaded | None) -> Loaded:
    """Return the shallower model, ready to learn: in float32, or as it is where adapters alone change.

    Then it shares its weights with the dense model, where nothing changed them before.
    """
    if not job.settings.recover.adapter_rank:
        return job.load(shallow, torch.float32)
    changed = job.folder("regularise") or job.folder("compensate")
    # a model that is divided has weights of its own
    if dense is None or changed or dense.again:
        return job.load(shallow, _kept_dtype(job))
    student = replace(dense, model=twin(dense.model))
    remove_layers(student.model, job.learnt.removed)
    return student


def _written_text(job: Job, dense: Loaded) -> torch.Tensor:
    """Return the blocks that the dense model writes, (synthetic x samples, seq_len) int64."""
    blocks = job.blocks(dense)
    count = job.settings.recover.written * len(blocks)
    seed = job.settings.calibration.seed
    kept, first = job.work / SYNTHETIC, len(dense.bos)
    return synthetic_blocks(dense.model, blocks, count, seed, kept, first)


def _training_run(job: Job, name: str) -> TrainingRun:
    return TrainingRun(
        label=name,
        seed=job.settings.calibration.seed,
        compute=_compute_dtype(job),
        checkpoint=job.checkpoint(name),
    )


def _kept_dtype(job: Job) -> torch.dtype | None:
    """Return the dtype that the model is kept in until removal: what was trained stays in float32."""
    return torch.float32 if job.folder("regularise") else None


def _compute_dtype(job: Job) -> torch.dtype:
    """Return the dtype that training computes in: bfloat16 for every 16-bit model, since it needs no loss scaling."""
    return torch.float32 if job.learnt.dtype == "float32" else torch.bfloat16


# the one list: ``elder compress``, ``elder compare``, the stages of a flow and the record follow it
STAGES: tuple[Stage, ...] = (
    Stage("learn", _learn, section="select", result=Learnt, divided=only_runs),
    Stage(
        "regularise",
        _regularise,
        section="regularise",
        result=Trained,
        joins=lambda settings: not settings.regularise.epochs,
        divided=lambda _: True,
    ),
    Stage("remove", _remove, section=None, result=Removed, joins=lambda _: True),
    Stage(
        "compensate",
        _compensate,
        section="compensate",
        result=Compensated,
        joins=lambda _: True,
    ),
    Stage(
        "recover",
        _recover,
        section="recover",
        result=Trained,
        joins=_is_idle,
        divided=lambda _: True,
    ),
)
