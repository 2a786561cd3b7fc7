"""Measure the rows of a comparison: each is compressed, evaluated, written down and deleted, in a process of its own.

A folder holds the work of any number of processes at once:

    rows/NAME.json         what was measured; its presence is the mark of completion
    rows/NAME.npz          the loss of each evaluation block, for paired tests
    shared/DIGEST.*        layers that were chosen and text that the dense model wrote, for rows that need the same
    work/NAME/             stages of a row that is under way; gone when it is measured
    locks/NAME             held by the process that measures the row; the kernel frees it however that process ends

NAME ends in a digest of all that the numbers depend on, so that a change of parameters, model, texts or version is
measured anew, what was measured before is found again, and two rows that mean the same are measured once.
"""

import hashlib
import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from elder import __version__
from elder.compare.rows import SHARED, Row
from elder.compression.compress import describe, open_job
from elder.compression.stages import STAGES, SYNTHETIC
from elder.environment import environment
from elder.errors import UserError
from elder.evaluation.perplexity import evaluate_by_block
from elder.files import copy_whole, file_digest, whole_file, write_json
from elder.fingerprint import folder_digest, package_version
from elder.locks import Busy, hold
from elder.model.load import DTYPES, Loaded, block_length, load_model, parameter_count
from elder.params import Params
from elder.process import prepare_libraries
from elder.progress import say

DENSE = "dense"
BUSY = "another process measures it"
POLL = 2.0  # seconds between looks at rows that other processes measure
BUDGET = (
    "tokens_seen",
    "tokens_generated",
    "optimizer_steps",
    "trainable_parameters",
    "seconds",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class Measurement:
    """One number of the table to be: a row, or the dense model, with all parameters settled.

    Attributes:
        row: the row's name, or ``dense``.
        settings: all parameters; texts are files.
        slug: name of its files.
    """

    row: str
    settings: Params
    slug: str

    def path(self, folder: Path) -> Path:
        """Return the file of its result."""
        return folder / "rows" / f"{self.slug}.json"


def plan(
    rows: list[Row],
    base: Params,
    sizes: list[dict[str, Any]],
    seeds: list[int],
    calibrations: list[str],
) -> list[Measurement]:
    """List all measurements: the dense model first, then seed by seed, so that an early table has all rows.

    Args:
        rows: what is compared.
        base: parameters that all rows share.
        sizes: for each size, what is set in ``select``: ``layers`` or ``ratio``.
        seeds: of the choice of blocks and of all training.
        calibrations: texts to calibrate on.

    Raises:
        UserError: for a text that is missing, or a change that the parameters refuse.
    """
    protocol = _protocol(base)
    digests = {path: _digest_of_text(path) for path in calibrations}
    found = [Measurement(DENSE, base, f"{DENSE}-{_digest(protocol)}")]
    for seed in seeds:
        for text in calibrations:
            for size in sizes:
                shared = base.model_copy(
                    update={
                        "calibration": base.calibration.model_copy(
                            update={"source": text, "seed": seed}
                        ),
                        "select": base.select.model_copy(update={"layers": None} | size),
                    }
                )
                for row in rows:
                    settings = row.settings(shared)
                    key = [
                        protocol,
                        recipe(settings),
                        settings.calibration.model_dump(mode="json"),
                        digests[text],
                    ]
                    slug = f"{settings.select.method}-s{seed}-{_digest(key)}"  # rows that are the same share it
                    found.append(Measurement(row.name, settings, slug))
    return found


def recipe(settings: Params) -> dict[str, Any]:
    """Return the sections that say how a model is made shallower."""
    return {
        name: values
        for name, values in settings.model_dump(mode="json").items()
        if name not in SHARED
    }


def run_all(
    measurements: list[Measurement],
    folder: Path,
    after: Callable[[], Any],
    isolate: bool = True,
) -> list[tuple[str, str]]:
    """Measure what is not measured yet; rows that another process has in hand are waited for.

    Args:
        measurements: from `plan`; the first is the dense model.
        folder: of the comparison.
        after: called whenever something new was measured.
        isolate: measure each in a new process, so that its peak memory is its own.

    Returns:
        Name and reason of each row that could not be measured; the others are not held up by it.

    Raises:
        UserError: if the dense model cannot be measured.
    """
    for name in ("rows", "locks", "work", "shared"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    failed: list[tuple[str, str]] = []
    waiting = [one for one in measurements if not one.path(folder).exists()]
    done = len(measurements) - len(waiting)
    while waiting:
        busy = []
        for one in waiting:
            reason = _in_own_process(one, folder) if isolate else _attempt(one, folder)
            if reason == BUSY:
                busy.append(one)
                continue
            if reason:
                if one.row == DENSE:
                    raise UserError(reason)
                failed.append((f"{one.row}, seed {one.settings.calibration.seed}", reason))
                say(f"{one.row}, seed {one.settings.calibration.seed}: {reason}")
                continue
            done += 1
            say(
                f"{done}/{len(measurements)} {one.row}, seed {one.settings.calibration.seed}: {_news(one, folder)}"
            )
            after()
        if len(busy) == len(waiting):
            time.sleep(POLL)
        waiting = busy
    return failed


def read_result(one: Measurement, folder: Path) -> dict[str, Any]:
    """Return what was measured, with the row's ``name`` and ``losses``, {domain: (blocks,) float64}."""
    found = json.loads(one.path(folder).read_text(encoding="utf-8"))
    with np.load(one.path(folder).with_suffix(".npz")) as arrays:
        losses = {domain: arrays[domain].astype(np.float64) for domain in arrays.files}
    return found | {"name": one.row, "losses": losses}


def measure(one: Measurement, folder: Path) -> None:
    """Measure one row or the dense model, and write it down."""
    prepare_libraries()
    if one.row == DENSE:
        loaded = load_model(one.settings.model)
        record = dict.fromkeys(BUDGET, 0) | {
            "removed": [],
            "num_layers": loaded.num_layers,
            "search": [],
        }
    else:
        loaded, record = _compress(one, folder)
    settings = one.settings
    seq_len = (
        settings.evaluate.seq_len
        if settings.evaluate.seq_len != "auto"
        else settings.calibration.seq_len
    )
    found, losses = evaluate_by_block(
        loaded, settings.evaluate, block_length(seq_len, loaded.model)
    )
    result = {
        "calibration": settings.calibration.source,
        "seed": settings.calibration.seed,
        **record,
        "parameters": parameter_count(loaded.model),
        **{key: found[key] for key in ("perplexity", "tasks", "task_mean", "protocol")},
        "evaluation_seconds": round(found["seconds"], 3),
        "model": settings.model.name,
        "recipe": recipe(settings),
        "environment": environment(settings.model.device),
    }
    arrays: dict[str, Any] = {
        domain: values.numpy().astype(np.float32) for domain, values in losses.items()
    }
    with whole_file(one.path(folder).with_suffix(".npz")) as new, new.open("wb") as handle:
        np.savez_compressed(handle, **arrays)
    write_json(one.path(folder), result)
    shutil.rmtree(folder / "work" / one.slug, ignore_errors=True)


def _compress(one: Measurement, folder: Path) -> tuple[Loaded, dict[str, Any]]:
    """Make one row's shallower model, in the dtype of the dense one, and say what that took."""
    settings = one.settings
    job = open_job(folder / "work" / one.slug, settings, Path(settings.calibration.source))
    choice = (
        folder
        / "shared"
        / f"{_digest_for(settings, settings.select.model_dump(mode='json'))}.json"
    )
    text = (
        folder / "shared" / f"{_digest_for(settings, settings.recover.synthetic)}.safetensors"
    )
    _copy(choice, job.work / "learn.json")
    _copy(text, job.work / SYNTHETIC)
    for stage in STAGES:
        job.run(stage)
        _copy(job.work / "learn.json", choice)
        _copy(job.work / SYNTHETIC, text)
    record = describe(job, one.row)
    kept = {key: record[key] for key in ("removed", "num_layers", "tokens", "search", *BUDGET)}
    dtype = DTYPES[record["model"]["dtype"]]
    return job.load(job.last_folder(), dtype), kept


def _copy(source: Path, target: Path) -> None:
    """Copy a file if it is there and the copy is not; several processes may make the same one."""
    if source.exists() and not target.exists():
        copy_whole(source, target)


def _digest_for(settings: Params, own: Any) -> str:
    """Digest what a choice of layers or a text of the dense model may depend on, ``own`` being its own parameters."""
    calibration = settings.calibration
    return _digest(
        [
            own,
            calibration.model_dump(mode="json"),
            _digest_of_text(calibration.source),
            *_of_model(settings),
        ]
    )


def _protocol(base: Params) -> list[Any]:
    """Return all that the measurements share: the model, the texts and how they are read, and the version."""
    wanted = base.evaluate.model_dump(mode="json")
    texts = {
        domain: _digest_of_text(wanted[domain]) for domain in ("in_domain", "out_of_domain")
    }
    rest = {key: wanted[key] for key in ("seq_len", "max_tokens", "tasks", "limit")}
    tasks = None
    if base.evaluate.tasks:
        data = base.evaluate.task_data
        tasks = [package_version("lm_eval"), folder_digest(Path(data)) if data else None]
    return [*_of_model(base), texts, rest, str(base.calibration.seq_len), tasks]


def _of_model(settings: Params) -> list[Any]:
    """Return what says which model it is; a card that was edited since does not count, nor does any text beside it."""
    files: list[tuple[str, Any]] = []
    folder = Path(settings.model.name)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix == ".safetensors":  # too large to read again and again
            files.append((path.name, [path.stat().st_size, path.stat().st_mtime_ns]))
        elif path.name.startswith(("config", "token", "vocab", "merges")):
            files.append((path.name, file_digest(path)))
    return [settings.model.model_dump(mode="json"), files, __version__]


def _digest_of_text(path: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"there is no text file {path!r}; give the path of a plain UTF-8 text")
    return file_digest(Path(path))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _news(one: Measurement, folder: Path) -> str:
    found = json.loads(one.path(folder).read_text(encoding="utf-8"))
    inside, outside = (
        found["perplexity"][domain]["perplexity"] for domain in ("in_domain", "out_of_domain")
    )
    return f"{inside:.2f} in domain, {outside:.2f} out of domain"


def _attempt(one: Measurement, folder: Path) -> str | None:
    """Measure unless it is done or in other hands; returns None, `BUSY`, or why it could not be measured."""
    try:
        with hold(folder / "locks" / one.slug, BUSY):
            return _measured(one, folder)
    except Busy:
        return BUSY


def _measured(one: Measurement, folder: Path) -> str | None:
    """Measure unless it is done; returns None, or why it could not be measured."""
    if one.path(folder).exists():
        return None
    try:
        measure(one, folder)
    except UserError as error:
        return str(error)
    except Exception as error:  # one broken row must not cost the hours of the others
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _in_own_process(one: Measurement, folder: Path) -> str | None:
    """Do as `_attempt`, in a new process."""
    if one.path(folder).exists():
        return None
    try:
        with hold(folder / "locks" / one.slug, BUSY):
            pass  # a look before the cost of a process
    except Busy:
        return BUSY
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, one, folder))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        child.join()
        return f"the process that measured it ended with status {child.exitcode}; was there enough memory?"
    finally:
        child.join(5)
        if child.is_alive():  # after an interruption
            child.terminate()
            child.join()


def _send(sender: Any, one: Measurement, folder: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(_attempt(one, folder))
    except KeyboardInterrupt:  # said by the parent
        sender.close()


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, and end; what is written is written by rename."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
