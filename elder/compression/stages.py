"""The stages of one compression, from the choice of layers to the recovery. Each can be killed and run again.

A stage reads what the ones before it left in the work folder, and leaves its own result there: `elder.compression.job`.
``elder compress`` runs the stages in one process; a flow runs them in processes of their own. Both give the same bytes.

`STAGES`, at the end of this file, is the one list of them: a new stage is a function and a line there.
"""

import hashlib
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch

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
    drop_layers,
    sharing,
    to_compensate,
    without_layers,
)
from elder.compression.results import Compensated, Learnt, Removed, Trained, Tuned
from elder.device import peak_memory_bytes
from elder.errors import UserError
from elder.files import file_digest
from elder.model.layers import find_layers, remove_layers
from elder.model.load import Loaded, parameter_count, weights_digest
from elder.parallel.ranks import count, was_started_as_rank
from elder.params.catalogue import AUTO
from elder.progress import say
from elder.recovery import RECOVERIES, recovering, student_of
from elder.training.data import TrainingData, training_data
from elder.training.flops import PASS, Counter, head_size, of_training, passed
from elder.training.loop import TrainingRun
from elder.training.micro_batch import MicroBatch
from elder.training.regularise import regularise
from elder.training.search import Values
from elder.training.synthesis import Writing, synthetic_blocks
from elder.training.teacher import KnownStates, known_states, refuse_full_disk
from elder.training.tune import OPTIMIZER, Tried, Tuning, grids_of

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
    _refuse_full_disk(job, loaded, blocks)
    chosen = select_layers(loaded, blocks, job.settings)
    return Learnt(
        **dict(chosen),
        parameters=parameter_count(loaded.model),
        passed=passed(loaded.model),
        weights_sha256=weights_digest(loaded.model),
        revision=loaded.revision,
        dtype=str(loaded.dtype).removeprefix("torch."),
        seq_len=blocks.shape[1],
        calibration_sha256=file_digest(job.calibration),
        blocks_sha256=hashlib.sha256(blocks.numpy().tobytes()).hexdigest(),
        dequantised_from=loaded.dequantised_from,
        file_sha256=loaded.file_sha256,
    )


def _refuse_full_disk(job: Job, loaded: Loaded, blocks: torch.Tensor) -> None:
    """Refuse, before the choice of layers, what the recovery could not keep on the disk after it."""
    wanted, head = job.settings.recover, loaded.model.get_output_embeddings()
    keeps = wanted.keeps_states and not wanted.is_idle and not was_started_as_rank()
    if keeps and head is not None and not (job.work / SYNTHETIC).exists():
        many = (wanted.written + 1) * len(blocks)
        shape = many, blocks.shape[1], head.weight.shape[-1]
        refuse_full_disk(job.work, shape, loaded.dtype.itemsize)


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
    flops = of_training(loaded.model, settings, spent.tokens_seen)
    return Trained(spent=spent, flops=flops, peak_memory_bytes=peak)


def _remove(job: Job) -> Removed:
    loaded = job.load(job.folder("regularise"), _kept_dtype(job), device="cpu")
    remove_layers(loaded.model, job.learnt.removed)
    job.keep("remove", loaded)
    return Removed(
        parameters=parameter_count(loaded.model),
        num_layers=len(find_layers(loaded.model)),
    )


def _tune(job: Job) -> Tuned:
    """Try out what the recovery leaves to trials; keep what the best of them learnt where nothing is mended."""
    settings = job.settings.recover
    if settings.is_idle or not grids_of(settings):
        return Tuned()
    student, recovery = _ready_to_recover(job, "tune")
    with recovery as made:
        tried = made.try_out()
    peak = peak_memory_bytes(student.model.device)
    unmended = mending(job.settings, tried.values) == NONE
    # adapters begin anew, beside weights that are the dense model's
    if tried.goes_on and unmended and not settings.adapter_rank:
        job.keep("tune", student)
    return Tuned(
        values=tried.values,
        spent=tried.spent,
        flops=_flops_of_recovery(job, student, tried.spent.tokens_seen),
        peak_memory_bytes=peak,
    )


def _compensate(job: Job) -> Compensated:
    method = mending(job.settings, _tried(job).values)
    if method == NONE:
        return Compensated(compensation=None)
    batch = job.settings.compensate.batch
    at_once = MicroBatch(f"compensation by {method}", batch)
    return at_once.attempt(partial(_compensate_in_batches, job, method))


def mending(settings: params.Params, tried: Values) -> str:
    """Return the compensation, or ``none``: where it was left open, a recovery by Muon does as well without."""
    by_muon = tried.get(OPTIMIZER) == "muon"
    return (
        NONE
        if by_muon and settings.compensate.method == AUTO
        else settings.compensation
    )


def _compensate_in_batches(job: Job, method: str, batch: int) -> Compensated:
    """Compensate a model that is loaded anew, which an attempt that ran out of memory may have changed."""
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
    with Counter() as counter:
        record = compensate(method, pruned)
    peak = peak_memory_bytes(shallow.model.device)
    job.keep("compensate", shallow)
    return Compensated(
        compensation=record,
        spent=pruned.spent,
        flops=counter.flops,
        peak_memory_bytes=peak,
    )


def _budget(job: Job) -> int | None:
    """Return the tokens of the recovery, those of the compensation included; None where nothing is recovered."""
    if job.settings.recover.is_idle:
        return None
    return int(job.settings.recover.epochs * job.learnt.tokens)


def _recover(job: Job) -> Trained:
    settings = job.settings.recover
    if settings.is_idle:
        return Trained()
    mended = job.run("compensate").spent.tokens_seen
    if mended >= settings.epochs * job.learnt.tokens:
        say(
            f"nothing is left of recover.epochs {settings.epochs:g} after {job.settings.compensation}"
        )
        return Trained()
    student, recovery = _ready_to_recover(job, "recover")
    with recovery as made:
        spent = made.run_with(_tried(job), mended)
    peak = peak_memory_bytes(student.model.device)
    job.keep("recover", student)
    flops = _flops_of_recovery(job, student, spent.tokens_seen)
    looked_at = spent.tokens_generated
    if settings.keeps_states and count() == 1:
        looked_at += job.learnt.tokens
    flops += PASS * job.learnt.passed * looked_at
    return Trained(spent=spent, flops=flops, peak_memory_bytes=peak)


def _flops_of_recovery(job: Job, student: Loaded, tokens: int) -> int:
    """Return what it takes to learn from so many tokens, what the dense model makes of them included.

    What that writes beforehand, and what its layers make of blocks whose states are kept, is no part of it.
    """
    settings = job.settings.recover
    flops = of_training(student.model, settings, tokens)
    if not RECOVERIES.find(settings.mode).teacher:
        return flops
    kept = settings.keeps_states and count() == 1
    dense = head_size(student.model) if kept else job.learnt.passed
    return flops + PASS * dense * tokens


def _tried(job: Job) -> Tried:
    """Return what the recovery's trials came to."""
    found = job.run("tune")
    assert isinstance(found, Tuned)
    return Tried(found.values, found.spent)


def _ready_to_recover(
    job: Job, stage: str
) -> tuple[Loaded, AbstractContextManager[Tuning]]:
    """Return the model that the stages before one left, and its recovery, of which that stage does a part."""
    settings = job.settings.recover
    recovery = RECOVERIES.find(settings.mode)
    dense = job.load() if recovery.teacher else None
    # before the student takes its memory
    data, states = _training_data(job, dense) if dense else (None, None)
    student = _student(job, job.last_folder(stage), dense, states is not None)
    data = data or training_data(job.blocks(student))
    teacher = dense.model if dense else None
    learner = student_of(settings, student.model, teacher, job.learnt.removed, states)
    return student, recovering(learner, data, settings, _training_run(job, "recover"))


def _student(job: Job, shallow: Path, dense: Loaded | None, head_alone: bool) -> Loaded:
    """Return the shallower model, ready to learn: in float32, or as it is where adapters alone change.

    Args:
        job: the job.
        shallow: its folder.
        dense: the dense model, whose weights adapters share.
        head_alone: the dense model's layers are needed no more, and go where nothing shares them.
    """
    adapters = job.settings.recover.adapter_rank > 0
    # stage 2 changed all weights, and a model that is divided has weights of its own
    if not adapters or dense is None or job.folder("regularise") or dense.again:
        if dense and head_alone:
            drop_layers(dense.model)
        return job.load(shallow, _kept_dtype(job) if adapters else torch.float32)
    if shallow == job.work / "remove":
        return without_layers(dense, job.learnt.removed)
    mended = job.load(shallow, device="cpu")
    return sharing(dense, mended.model, job.learnt.removed)


def _training_data(job: Job, dense: Loaded) -> tuple[TrainingData, KnownStates | None]:
    """Return the calibration blocks, and beside them what the dense model writes for the recovery.

    What it makes of them comes with them where it is kept, which one process alone does.
    """
    blocks, wanted = job.blocks(dense), job.settings.recover
    writing = Writing(
        count=wanted.written * len(blocks),
        seed=job.settings.calibration.seed,
        first=len(dense.bos),
        by_sums=wanted.drawn_by_sums,
    )
    kept = job.work / SYNTHETIC
    if wanted.keeps_states and count() == 1:
        states = known_states(dense.model, blocks, writing, kept)
        written = states.ids[: writing.count]
        return training_data(blocks, written if len(written) else None), states
    if not writing.count:
        return training_data(blocks), None
    written = synthetic_blocks(dense.model, blocks, writing, kept)
    return training_data(blocks, written), None


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
        "tune",
        _tune,
        section="recover",
        result=Tuned,
        joins=lambda settings: (
            settings.recover.is_idle or not grids_of(settings.recover)
        ),
        divided=lambda _: True,
    ),
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
