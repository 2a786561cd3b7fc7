"""What each stage of a compression takes, beside the choice of layers."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elder.compensation.halves import HalvesSettings
from elder.compensation.refit import RefitSettings
from elder.params.catalogue import NONE
from elder.plan import work
from elder.plan.case import Case
from elder.plan.estimate import LYING, STATES, Estimate, beside
from elder.plan.live import WEIGHTS
from elder.plan.simulate import Lab, simulate
from elder.plan.training import Training
from elder.plan.writing import with_writing
from elder.recovery import RECOVERIES, student_of
from elder.training.loop import LossFunction
from elder.training.regularise import LAMBDA2_GRID, Regularised, Turn
from elder.training.tune import grids_of

FLOAT = torch.float32
SOLVING = "least squares"
MATRICES = (
    4  # of (features, features): sums, one batch's, what is solved and its factors
)


def removing(case: Case) -> Estimate:
    """Return what taking the layers out takes, which is done on the CPU."""
    weights = {LYING: float(case.dense_bytes)}
    return Estimate("remove", "read and written", (weights,), computes=False)


def compensating(case: Case) -> Estimate | None:
    """Return what a compensation takes; None where there is none. Both models look at each block once."""
    wanted, method = case.settings.compensate, case.settings.compensation
    if method == NONE:
        return None
    need = simulate(case.shape, case.layers, work.look(case.dtype, wanted.batch))
    weights = float(case.dense_bytes + case.own_layers_bytes)
    looks = Estimate(
        name="compensate",
        mode=f"mended by {method}",
        peaks=beside(weights, need),
        batch=wanted.batch,
        micro_batch=wanted.batch,
        flops=2 * need.flops / wanted.batch * case.samples,
    )
    own = wanted.settings_of(method)
    if isinstance(own, RefitSettings):
        return _refitting(case, looks, own)
    return _halving(case, looks, own) if isinstance(own, HalvesSettings) else looks


def _halving(case: Case, looks: Estimate, own: HalvesSettings) -> Estimate:
    """Return what trying pairs of halves takes: two for each layer that goes, and one for each that stands for some."""
    batch = case.settings.compensate.batch
    need = simulate(case.shape, case.layers, work.judge(case.dtype, batch))
    pairs = 2 * case.gone + min(case.gone, case.left)
    passes = pairs * min(own.samples, case.samples) / batch * case.left / case.layers
    weights = float(case.dense_bytes + case.own_layers_bytes)
    return replace(looks, peaks=beside(weights, need), flops=passes * need.flops)


def _refitting(case: Case, looks: Estimate, own: RefitSettings) -> Estimate:
    """Return a compensation and the training of single layers, at most one for each that goes.

    What enters and leaves a layer lies on the CPU.
    """
    at_once = min(own.batch, case.settings.compensate.batch)
    need = simulate(case.shape, 1, work.refit(case.compute, at_once, own.optimizer))
    trained = case.largest_layer_bytes / case.dtype.itemsize * FLOAT.itemsize
    (peak,) = beside(case.dense_bytes + case.own_layers_bytes + trained, need)
    tokens = case.samples * case.shape.seq_len
    states = {STATES: 2.0 * tokens * case.shape.text.hidden_size * case.dtype.itemsize}
    peaks = [*looks.peaks, peak]
    if own.least_squares:
        text = case.shape.text
        features = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        solving = float(MATRICES * features**2 * torch.float64.itemsize)
        weights = float(case.dense_bytes + case.own_layers_bytes)
        peaks.append({WEIGHTS: weights, SOLVING: solving})
    groups = min(case.gone, case.left)
    passes = own.epochs * groups
    recover = case.settings.recover
    if not recover.is_idle:
        layers = case.parameters_left * case.dtype.itemsize / case.largest_layer_bytes
        passes = min(passes, own.most * recover.epochs * layers)
    return replace(
        looks,
        peaks=tuple(parts | states for parts in peaks),
        flops=groups * looks.flops + passes * case.samples / at_once * need.flops,
    )


def regularising(case: Case) -> Estimate | None:
    """Return what stage 2 takes; None where there is none."""
    wanted = case.settings.regularise
    if not wanted.epochs:
        return None

    def make_loss(lab: Lab, model: Any) -> LossFunction:
        gone = max(1, round(lab.layers * case.gone / case.layers))
        return Regularised(model, range(gone), wanted, 0.1, Turn(gone))

    grids = grids_of(wanted)
    if wanted.lambda2 == "auto":
        grids |= {"lambda2": LAMBDA2_GRID}
    training = Training(case, wanted, case.layers, make_loss, FLOAT, grids)
    return training.estimate("regularise", 4.0 * case.parameters)


def recovering(case: Case) -> Estimate | None:
    """Return what the recovery takes; None where there is none."""
    wanted = case.settings.recover
    if wanted.is_idle:
        return None
    entry = RECOVERIES.find(wanted.mode)

    def make_loss(lab: Lab, model: Any) -> LossFunction:
        dense = lab.model(case.dtype) if entry.teacher else None

        def known(ids: Tensor) -> Tensor:
            return torch.zeros(*ids.shape, case.shape.text.hidden_size).to(case.dtype)

        states = known if case.keeps_states else None
        student = student_of(wanted, model, dense, states=states)
        made: LossFunction = entry.function(student)
        return made

    dtype = case.dtype if wanted.adapter_rank else FLOAT
    training = Training(case, wanted, case.left, make_loss, dtype, grids_of(wanted))
    weights = float(case.parameters_left * dtype.itemsize)
    if not entry.teacher:
        return training.estimate("recover", weights)
    found = _beside_teacher(case, training, weights)
    if not wanted.written:
        return found
    return with_writing(case, found, wanted.written * case.samples, case.keeps_states)


def _beside_teacher(case: Case, training: Training, student: float) -> Estimate:
    """Return a recovery beside the dense model; where adapters alone are trained, both share what is the same."""
    settings = case.settings
    if not settings.recover.adapter_rank or settings.regularise.epochs:
        teacher = case.dense_bytes
        if case.keeps_states:
            teacher -= case.layers_bytes
        return training.estimate("recover", student + teacher)
    found = training.estimate(
        "recover", float(case.dense_bytes + case.own_layers_bytes)
    )
    if settings.compensation == NONE:
        return found
    # all of the student is read, on the CPU, to find what is its own
    reading = {WEIGHTS: float(case.dense_bytes), LYING: student}
    return replace(found, peaks=(*found.peaks, reading))
