"""The folder of one run: a new one, or that of a run with the same inputs that did not come to its end."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from elder.params import Params
from elder.saving import write_json


@contextmanager
def run_folder(root: Path, params: Params, method: str) -> Iterator[tuple[str, Path]]:
    """Give (run id, folder) for a run, and hold the folder's lock until its end.

    The key of a run is the digest of its parameters and method. An unfinished folder of the same key that nobody holds
    is gone on with: what its stages finished is not done again.
    """
    inputs = json.dumps([method, params.model_dump(mode="json")], sort_keys=True)
    key = hashlib.sha256(inputs.encode()).hexdigest()[:8]
    runs = root / "runs"
    runs.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    unfinished = [p for p in sorted(runs.glob(f"*-{key}*")) if p.is_dir() and not (p / "run.json").exists()]
    for folder in [*unfinished, runs / f"{stamp}-{key}"]:
        folder.mkdir(exist_ok=True)
        try:
            with FileLock(folder / "lock", timeout=0):
                path = folder / "params.yaml"
                path.write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
                yield folder.name, folder
                return
        except Timeout:
            continue
    raise RuntimeError(f"two runs with the same parameters were started in the same second: {folder}")


def close_run(folder: Path, record: dict[str, Any]) -> None:
    """Mark a run as finished: its record is complete."""
    write_json(folder / "run.json", record)
