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
from elder.compression.layers import select_layers
from elder.compression.memory import (
    differences,
    sharing,
    to_compensate,
    without_layers,
)
from elder.compression.results import Compensated, Learnt, Removed, Trained
from elder.device import peak_memory_bytes
from elder.errors import UserError
from elder.files import file_digest
from elder.model.layers import (
    find_layers,
    remove_layers,
)
from elder.model.load import Loaded, parameter_count, weights_digest
from elder.params.catalogue import AUTO
from elder.progress import say
from elder.recovery import RECOVERIES, recover, student_of
from elder.training.data import TrainingData, training_data
from elder.training.loop import TrainingRun
from elder.training.micro_batch import MicroBatch
from elder.training.regularise import regularise
from elder.training.synthesis import synthetic_blocks
from elder.training.tune import Mended, grids_of

SYNTHETIC = (
    "recover.synthetic.safetensors"  # what the dense model wrote, in the work folder
)


def _learn(job: Job) -> Learnt:
    COMPENSATIONS.refuse_unknown(job.settings.compensate.method)  # before any work
    RECOVERIES.refuse_unknown(job.settings.recover.mode)
    refuse_offload(job.settings.select, job.settings.compensation)
    loaded = job.load(offload=job.settings.select.offload)
    blocks = job.blocks(loaded)
    refuse_unfit(job.settings.compensation, loaded.model, blocks)
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
    if settings.anneal and job.settings.compensation != NONE:
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
    method = job.settings.compensation
    if method == NONE:
        return Compensated(compensation=None)
    batch = job.settings.compensate.batch
    at_once = MicroBatch(f"compensation by {method}", batch)
    return at_once.attempt(partial(_compensate_in_batches, job))


def _compensate_in_batches(job: Job, batch: int) -> Compensated:
    """Compensate a model that is loaded anew, which an attempt that ran out of memory may have changed."""
    method = job.settings.compensation
    # what the layers were taken out of
    before = job.load(job.folder("regularise"), _kept_dtype(job))
    removed = tuple(job.learnt.removed)
    everywhere = COMPENSATIONS.find(method).everywhere
    shallow = to_compensate(before, removed, everywhere)
    pruned = Pruned(
        model=shallow.model,
        dense=before.model,
        removed=removed,
        blocks=job.blocks(shallow),
        settings=job.settings.compensate.settings_of(method),
        batch=batch,
        seed=job.settings.calibration.seed,
        budget=_budget(job),
    )
    record = compensate(method, pruned)
    peak = peak_memory_bytes(shallow.model.device)
    job.keep("compensate", shallow)
    return Compensated(compensation=record, spent=pruned.spent, peak_memory_bytes=peak)


def _budget(job: Job) -> int | None:
    """Return the tokens of the recovery, those of the compensation included; None where nothing is recovered."""
    if job.settings.recover.is_idle:
        return None
    return int(job.settings.recover.epochs * job.learnt.tokens)


def _recover(job: Job) -> Trained:
    if job.settings.recover.is_idle:
        return Trained()
    settings = _left_to_recover(job)
    if not settings.epochs:
        return Trained()
    recovery = RECOVERIES.find(settings.mode)
    shallow = job.folder("compensate") or job.folder("remove")
    dense = job.load() if recovery.teacher else None
    # before the student takes its memory
    data = _training_data(job, dense) if dense else None
    student = _student(job, shallow, dense)
    data = data or training_data(job.blocks(student))
    teacher = dense.model if dense else None
    learner = student_of(settings, student.model, teacher, job.learnt.removed)
    optional = job.settings.compensate.method == AUTO
    mended = Mended(_unmended(job, student.model), optional)
    learner = replace(learner, mended=mended)
    spent = recover(learner, data, settings, _training_run(job, "recover"))
    peak = peak_memory_bytes(student.model.device)
    job.keep("recover", student)
    return Trained(spent=spent, peak_memory_bytes=peak)


def _left_to_recover(job: Job) -> params.Recover:
    """Return the section ``recover`` with the passes that the compensation's training left of its budget."""
    settings = job.settings.recover
    mended = job.run("compensate").spent.tokens_seen
    left = max(0.0, settings.epochs - mended / job.learnt.tokens)
    if mended and not left:
        say(
            f"nothing is left of recover.epochs {settings.epochs:g} after {job.settings.compensation}"
        )
    return settings.model_copy(update={"epochs": left})


def _student(job: Job, shallow: Path | None, dense: Loaded | None) -> Loaded:
    """Return the shallower model, ready to learn: in float32, or as it is where adapters alone change."""
    if not job.settings.recover.adapter_rank:
        return job.load(shallow, torch.float32)
    # stage 2 changed all weights, and a model that is divided has weights of its own
    if dense is None or job.folder("regularise") or dense.again:
        return job.load(shallow, _kept_dtype(job))
    if not job.folder("compensate"):
        return without_layers(dense, job.learnt.removed)
    mended = job.load(shallow, device="cpu")
    return sharing(dense, mended.model, job.learnt.removed)


def _unmended(job: Job, model: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    """Return what the weights were that a compensation changed, where there will be trials."""
    if not job.folder("compensate") or not grids_of(job.settings.recover):
        return {}
    before = job.load(job.folder("remove"), _kept_dtype(job), device="cpu")
    return {mine: its for _, mine, its in differences(model, before.model)}


def _training_data(job: Job, dense: Loaded) -> TrainingData:
    """Return the calibration blocks, and beside them what the dense model writes for the recovery."""
    blocks = job.blocks(dense)
    count = job.settings.recover.written * len(blocks)
    if not count:
        return training_data(blocks)
    seed = job.settings.calibration.seed
    kept, first = job.work / SYNTHETIC, len(dense.bos)
    written = synthetic_blocks(dense.model, blocks, count, seed, kept, first)
    return training_data(blocks, written)


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
        joins=lambda settings: settings.recover.is_idle,
        divided=lambda _: True,
    ),
)
