"""From a dense model to a shallower one in a folder: run the stages, add up what they took, save with a full record."""

from pathlib import Path
from typing import Any

import torch

from elder import params
from elder.compression.job import Job, open_job, remove_work
from elder.compression.results import Compensated, Removed, StageResult
from elder.compression.stages import STAGES
from elder.environment import environment
from elder.errors import UserError
from elder.files import check_output, whole_folder, write_json
from elder.fingerprint import recipe_of
from elder.model.load import DTYPES
from elder.model.save import write_checkpoint
from elder.parallel.ranks import by_first, is_first
from elder.record import (
    CompressionRecord,
    Json,
    Lineage,
    ModelFacts,
    Point,
    Trial,
    plain,
)
from elder.report.card import model_card
from elder.settings import DEFAULT


def compress(
    settings: params.Params,
    calibration: Path,
    output: Path,
    method: str = DEFAULT,
    model_name: str | None = None,
) -> CompressionRecord:
    """Select, regularise, remove, compensate, recover and save.

    Partial work is kept beside the output, in ``.NAME.work``, until the output is there: the same call goes on from it.

    Args:
        settings: all parameters, a method's recipe laid over them already.
        calibration: UTF-8 text or calibration blocks.
        output: folder of the result; absent or empty.
        method: name of the recipe, for the record.
        model_name: the model's name for the record, where the user gave another than ``model.name``.

    Returns:
        The record that stands in ``elder.json``.

    Raises:
        UserError: for whatever is wrong with the input, or if another process works on the same output; the output
            folder is then not made.
    """
    check_output(output)
    work = output.absolute().with_name(f".{output.name}.work")
    with open_job(work, settings, calibration, STAGES) as job:
        try:
            check_output(output)  # another process may have come to its end meanwhile
            job.run_all()
        except (UserError, OSError):
            # there is nothing to go on from
            if is_first() and not job.marker(STAGES[0].name).exists():
                remove_work(job)
            raise
        record = by_first(lambda: finish(job, output, method, model_name))
        if is_first():
            remove_work(job)
    return record


def finish(
    job: Job, output: Path, method: str, model_name: str | None = None
) -> CompressionRecord:
    """Save the last stage's model in the dense model's dtype, with its record; returns the record."""
    dtype = DTYPES.get(job.learnt.dtype, torch.float32)
    final = job.load(job.last_folder(), dtype, device="cpu")
    record = describe(job, method, model_name or job.settings.model.name)
    return save_with_record(final.model, final.tokenizer, output, record, final.folder)


def save_with_record(
    model: Any,
    tokenizer: Any,
    folder: Path,
    record: CompressionRecord,
    source: Path | None = None,
) -> CompressionRecord:
    """Write a model folder whole or not at all: checkpoint, tokenizer, ``elder.json`` and a model card.

    Args:
        model: in the dtype it should be saved in.
        tokenizer: its tokenizer.
        folder: absent or empty.
        record: what ``elder.json`` and the card say.
        source: as `elder.model.save.write_checkpoint`.

    Returns:
        The record with the sha256 of the weights' files, as `elder.model.save.weights_file_digest`.
    """
    with whole_folder(folder) as partial:
        digest = write_checkpoint(model, tokenizer, partial, source)
        complete = record.model_copy(update={"sha256": digest})
        write_json(partial / "elder.json", plain(complete))
        (partial / "README.md").write_text(model_card(record), encoding="utf-8")
    return complete


def describe(job: Job, method: str, model_name: str) -> CompressionRecord:
    """Put together what all stages found and took; a stage that is not done is run.

    Args:
        job: the compression.
        method: name of the recipe.
        model_name: the dense model's name as the user gave it.
    """
    results = {stage.name: job.run(stage.name) for stage in job.stages}
    learnt, removed, compensated = job.learnt, results["remove"], results["compensate"]
    assert isinstance(removed, Removed)
    assert isinstance(compensated, Compensated)
    layers = range(learnt.num_layers)
    return CompressionRecord(
        model=_model_facts(job, model_name),
        method=method,
        recipe=recipe_of(job.settings),
        num_layers=learnt.num_layers,
        removed=learnt.removed,
        kept=[index for index in layers if index not in learnt.removed],
        scores=learnt.scores,
        weights=learnt.scores if learnt.weights_learnt else None,
        compensation=compensated.compensation,
        tokens=learnt.tokens,
        parameters_before=learnt.parameters,
        parameters_after=removed.parameters,
        lineage=_lineage(job, model_name),
        **_sums(results),
    )


def _model_facts(job: Job, name: str) -> ModelFacts:
    learnt = job.learnt
    origin = {}  # records of checkpoints that were not quantised say nothing of it
    if learnt.dequantised_from:
        origin["dequantised_from"] = learnt.dequantised_from
    if learnt.file_sha256:
        origin["file_sha256"] = learnt.file_sha256
    return ModelFacts(
        name=name,
        revision=learnt.revision,
        digest=learnt.weights_sha256,
        num_layers=learnt.num_layers,
        parameters=learnt.parameters,
        dtype=learnt.dtype,
        **origin,
    )


def _lineage(job: Job, name: str) -> Lineage:
    learnt = job.learnt
    wanted = job.settings.model_dump(mode="json")
    wanted["model"]["name"] = name
    return Lineage(
        **environment(job.settings.model.device),
        seed=job.settings.calibration.seed,
        data={job.calibration.name: learnt.calibration_sha256},
        blocks_sha256=learnt.blocks_sha256,
        params=wanted,
    )


def _sums(results: dict[str, StageResult]) -> dict[str, Json]:
    """Return what all stages took together, by its names in the record.

    ``trainable_parameters`` and ``peak_memory_bytes`` are the largest of all stages, the rest are sums.
    """
    curve: list[Point] = []
    search: list[Trial] = []
    for name, result in results.items():
        search += result.spent.search
        for point in result.spent.curve:
            curve.append(
                Point(stage=name, step=point.step, loss=point.loss, lr=point.lr)
            )
    spent = [result.spent for result in results.values()]
    return {
        "curve": curve,
        "search": search,
        "tokens_seen": sum(one.tokens_seen for one in spent),
        "tokens_generated": sum(one.tokens_generated for one in spent),
        "flops": sum(result.flops for result in results.values()),
        "optimizer_steps": sum(one.optimizer_steps for one in spent),
        "trainable_parameters": max(one.trainable_parameters for one in spent),
        "seconds": round(sum(result.seconds for result in results.values()), 3),
        "peak_memory_bytes": max(
            result.peak_memory_bytes for result in results.values()
        ),
    }
