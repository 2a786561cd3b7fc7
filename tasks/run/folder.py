"""The folder of one run: a new one, or that of a run with the same inputs that did not come to its end."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from elder.errors import UserError
from elder.files import write_json
from elder.params import Params
from tasks.errors import plain_errors

OPENED = {
    "lock",
    "params.yaml",
    "data",
    "inputs.json",
    "energy.json",
}  # what a folder holds before any stage has run


@contextmanager
def run_folder(root: Path, params: Params, method: str) -> Iterator[tuple[str, Path]]:
    """Give (run id, folder) for a run, and hold the folder's lock until its end.

    The key of a run is the digest of its parameters and method. An unfinished folder of the same key that nobody holds
    is gone on with: what its stages finished is not done again. A folder in which nothing was done is taken away again.
    """
    key, runs = _key(params, method), root / "runs"
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    unfinished = [
        path for path in sorted(runs.glob(f"*-{key}")) if path.is_dir() and not _finished(path)
    ]
    for folder in [*unfinished, runs / f"{stamp}-{key}"]:
        with plain_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
        try:
            if _finished(folder):  # by its own process, since we looked
                continue
            _write_private(
                folder / "params.yaml",
                yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False),
            )
            yield folder.name, folder
            return
        finally:
            if {path.name for path in folder.iterdir()} <= OPENED:
                shutil.rmtree(folder, ignore_errors=True)
            lock.release()
    raise UserError(
        "a run with the same parameters was started in this very second; start this one again"
    )


def finished_record(
    root: Path, params: Params, method: str, since: str = ""
) -> dict[str, Any] | None:
    """Return the record of the latest finished run of the same key, or None; of those made at ``since`` or later."""
    for folder in sorted((root / "runs").glob(f"*-{_key(params, method)}"), reverse=True):
        if _finished(folder):
            record: dict[str, Any] = json.loads(
                (folder / "run.json").read_text(encoding="utf-8")
            )
            if record["created"] >= since:
                return record
    return None


def forget_other_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    """Drop what an earlier attempt did in a run's folder, if it did it with other inputs.

    Args:
        folder: the run's folder.
        inputs: plain values that stand for data, model and code, none of which its parameters pin.
    """
    path = folder / "inputs.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != inputs:
        for old in [path for path in folder.iterdir() if path.name not in OPENED]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    write_json(path, inputs)


def file_stamps(folder: Path) -> list[list[Any]]:
    """Return name, size and time of change of a model's files: enough to notice another model, without reading it."""
    found = sorted((path.name, path.stat()) for path in folder.iterdir() if path.is_file())
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in found]


def close_run(folder: Path, record: dict[str, Any]) -> None:
    """Mark a run as finished: its record is complete."""
    write_json(folder / "run.json", record)


def _key(params: Params, method: str) -> str:
    inputs = json.dumps([method, params.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(inputs.encode()).hexdigest()[:8]


def _finished(folder: Path) -> bool:
    return (folder / "run.json").exists()


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: an address in it may hold a password."""
    with plain_errors(path):
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
