"""Measure one row, or the dense model: make its shallower model, evaluate it, write the numbers down, delete it."""

import shutil
from pathlib import Path

from elder.compare.plan import DENSE, Measurement
from elder.compare.result import Result, write_result
from elder.compression.compress import describe
from elder.compression.job import Job, open_job
from elder.compression.stages import STAGES, SYNTHETIC
from elder.environment import environment
from elder.evaluation.evaluate import evaluate_by_block, evaluation_length
from elder.evaluation.tasks import try_tasks
from elder.files import copy_whole
from elder.fingerprint import Fingerprint, calibration_parts, model_parts, recipe_of
from elder.model.load import DTYPES, Loaded, load_model
from elder.process import prepare_libraries
from elder.record import BUDGET, Json, plain


def measure(one: Measurement, folder: Path) -> None:
    """Measure one row or the dense model, and write it down.

    Args:
        one: what is measured.
        folder: of the comparison.

    Raises:
        UserError: for whatever is wrong with the model, the texts or the parameters.
    """
    prepare_libraries()
    if one.row == DENSE:
        loaded = load_model(one.settings.model, bos=one.settings.calibration.bos)
        wanted = one.settings.evaluate
        folder_of_tasks = Path(wanted.task_data) if wanted.task_data else None
        try_tasks(loaded, wanted.tasks, folder_of_tasks, wanted.limit, wanted.batch)
        made: dict[str, Json] = {"removed": [], "num_layers": loaded.num_layers}
    else:
        loaded, made = _compress(one, folder)
    settings = one.settings
    seq_len = evaluation_length(settings, loaded)
    evaluation, losses = evaluate_by_block(loaded, settings.evaluate, seq_len)
    result = Result.model_validate(
        {
            **made,
            "losses": {domain: values.numpy() for domain, values in losses.items()},
            "calibration": settings.calibration.source,
            "seed": settings.calibration.seed,
            "parameters": evaluation.parameters,
            "perplexity": evaluation.perplexity,
            "tasks": evaluation.tasks,
            "task_mean": evaluation.task_mean,
            "protocol": evaluation.protocol
            | {"protocol_digest": evaluation.protocol_digest},
            "evaluation_seconds": round(evaluation.seconds, 3),
            "model": settings.model.name,
            "recipe": recipe_of(settings),
            "environment": environment(settings.model.device),
        }
    )
    write_result(one, folder, result)
    shutil.rmtree(folder / "work" / one.slug, ignore_errors=True)


def _compress(one: Measurement, folder: Path) -> tuple[Loaded, dict[str, Json]]:
    """Make one row's shallower model, in the dtype of the dense one, and say what that took."""
    settings = one.settings
    work, source = folder / "work" / one.slug, Path(settings.calibration.source)
    with open_job(work, settings, source, STAGES) as job:
        shared = _shared_files(job, folder / "shared")
        for own, common in shared.items():
            _copy(common, own)
        for stage in STAGES:
            job.run(stage.name)
            for own, common in shared.items():
                _copy(own, common)
        record = plain(describe(job, one.row, settings.model.name))
        loaded = job.load(job.last_folder(), DTYPES[job.learnt.dtype])
    made = {
        key: record[key]
        for key in ("removed", "num_layers", "tokens", "search", *BUDGET)
    }
    return loaded, made


def _shared_files(job: Job, folder: Path) -> dict[Path, Path]:
    """Return what rows may take from one another, {file of this row: common file}: the layers chosen, the text written.

    A common file is named by all that its content depends on.
    """
    settings = job.settings
    inputs = Fingerprint(model_parts(settings)) | calibration_parts(settings)
    choice = inputs | {"select": settings.select.own()}
    wanted = settings.recover
    text = inputs | {
        "written": wanted.written,
        "by_sums": wanted.drawn_by_sums,
        "states": wanted.keeps_states,
    }
    return {
        job.marker("learn"): folder / f"{choice.short}.json",
        job.work / SYNTHETIC: folder / f"{text.short}.safetensors",
    }


def _copy(source: Path, target: Path) -> None:
    """Copy a file if it is there and the copy is not; several processes may make the same one."""
    if source.exists() and not target.exists():
        copy_whole(source, target)
