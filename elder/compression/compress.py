"""From a dense model to a shallower one in a folder: run the stages, add up what they took, save with a full record."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from elder import params
from elder.compression.recipes import DEFAULT
from elder.compression.stages import STAGES, Job
from elder.environment import environment
from elder.errors import UserError
from elder.files import check_output, whole_folder, write_json
from elder.fingerprint import Fingerprint, calibration_parts, model_parts, recipe_of
from elder.model.load import DTYPES
from elder.model.save import write_checkpoint
from elder.progress import say
from elder.report.card import model_card


def compress(
    settings: params.Params,
    calibration: Path,
    output: Path,
    method: str = DEFAULT,
    model_name: str | None = None,
) -> dict[str, Any]:
    """Select, regularise, remove, compensate, recover and save.

    Partial work is kept beside the output, in ``.NAME.work``, until the output is there: the same call goes on from it.

    Args:
        settings: all parameters, a method's recipe laid over them already; ``model.name`` is a folder or a Hub id.
        calibration: UTF-8 text or calibration blocks.
        output: folder of the result; absent or empty.
        method: name of the recipe, for the record.
        model_name: the model's name for the record, where the user gave another than ``model.name``.

    Returns:
        The record that stands in ``elder.json``.

    Raises:
        UserError: for whatever is wrong with the input; the output folder is then not made.
    """
    check_output(output)
    work = output.absolute().with_name(f".{output.name}.work")
    try:
        job = open_job(work, settings, calibration)
        for stage in STAGES:
            job.run(stage)
    except (UserError, OSError):
        if not (work / f"{STAGES[0]}.json").exists():  # there is nothing to go on from
            shutil.rmtree(work, ignore_errors=True)
        raise
    record = finish(job, output, method, model_name)
    shutil.rmtree(work, ignore_errors=True)
    return record


def open_job(work: Path, settings: params.Params, calibration: Path) -> Job:
    """Open a work folder; what lies there from other parameters or other calibration data is dropped."""
    wanted = job_fingerprint(settings, calibration)
    marker = work / "key.json"
    before = _read_fingerprint(marker)
    if before is None or before.digest != wanted.digest:
        if before is not None:
            changed = ", ".join(before.differences(wanted))
            say(f"{str(work)!r} was made with another value of: {changed}; starting anew")
        shutil.rmtree(work, ignore_errors=True)
    job = Job(work, settings, calibration)
    write_json(marker, {"digest": wanted.digest, "parts": dict(wanted.parts)})
    return job


def job_fingerprint(settings: params.Params, calibration: Path) -> Fingerprint:
    """Return what the results in a work folder depend on."""
    parts = recipe_of(settings) | model_parts(settings)
    return Fingerprint(parts | calibration_parts(settings, calibration))


def _read_fingerprint(marker: Path) -> Fingerprint | None:
    """Return the fingerprint that a work folder was made for; None where there is none that can be read."""
    try:
        return Fingerprint(json.loads(marker.read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finish(
    job: Job, output: Path, method: str, model_name: str | None = None
) -> dict[str, Any]:
    """Save the last stage's model in the dense model's dtype, with its record; returns the record."""
    learnt = job.result("learn")
    final = job.load(job.last_folder(), DTYPES.get(learnt["dtype"], torch.float32))
    record = describe(job, method)
    if model_name is not None:
        record["model"]["name"] = model_name
        record["lineage"]["params"]["model"]["name"] = model_name
    record["sha256"] = save_with_record(final.model, final.tokenizer, output, record)
    record["output"] = str(output)
    return record


def save_with_record(model: Any, tokenizer: Any, folder: Path, record: dict[str, Any]) -> str:
    """Write a model folder whole or not at all: checkpoint, tokenizer, ``elder.json`` and a model card.

    Args:
        model: in the dtype it should be saved in.
        tokenizer: its tokenizer.
        folder: absent or empty.
        record: what ``elder.json`` and the card say; the digest of the weights is added.

    Returns:
        sha256 of the weights' files, as `elder.model.save.weights_file_digest`.
    """
    with whole_folder(folder) as partial:
        digest = write_checkpoint(model, tokenizer, partial)
        write_json(partial / "elder.json", {**record, "sha256": digest})
        (partial / "README.md").write_text(model_card(record), encoding="utf-8")
    return digest


def describe(job: Job, method: str) -> dict[str, Any]:
    """Put together what all stages found and took."""
    results = {stage: job.result(stage) for stage in STAGES}
    learnt = results["learn"]
    spent = {stage: results[stage]["spent"] for stage in ("learn", "regularise", "recover")}
    removed = learnt["removed"]
    curve = [
        {"stage": stage, **point}
        for stage in ("regularise", "recover")
        for point in spent[stage]["curve"]
    ]
    return {
        "model": {
            "name": job.settings.model.name,
            "revision": learnt["revision"],
            "digest": learnt["weights_sha256"],
            "num_layers": learnt["num_layers"],
            "parameters": learnt["parameters"],
            "dtype": learnt["dtype"],
        },
        "method": method,
        "recipe": recipe_of(job.settings),
        "num_layers": learnt["num_layers"],
        "removed": removed,
        "kept": [index for index in range(learnt["num_layers"]) if index not in removed],
        "scores": learnt["scores"],
        "weights": learnt["scores"] if learnt["scores"]["name"] == "layer weight" else None,
        "compensation": results["compensate"]["compensation"],
        "curve": curve,
        "search": [trial for stage in spent.values() for trial in stage["search"]],
        "tokens": learnt["tokens"],
        "tokens_seen": sum(stage["tokens_seen"] for stage in spent.values()),
        "tokens_generated": spent["recover"]["tokens_generated"],
        "optimizer_steps": sum(stage["optimizer_steps"] for stage in spent.values()),
        "trainable_parameters": max(stage["trainable_parameters"] for stage in spent.values()),
        "parameters_before": learnt["parameters"],
        "parameters_after": results["remove"]["parameters"],
        "seconds": round(sum(result["seconds"] for result in results.values()), 3),
        "peak_memory_bytes": max(
            result.get("peak_memory_bytes", 0) for result in results.values()
        ),
        "lineage": {
            **environment(job.settings.model.device),
            "seed": job.settings.calibration.seed,
            "data": {job.calibration.name: learnt["calibration_sha256"]},
            "blocks_sha256": learnt["blocks_sha256"],
            "params": job.settings.model_dump(mode="json"),
        },
    }
