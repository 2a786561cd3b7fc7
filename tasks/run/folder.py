"""The folder of one run: a new one, or that of a run with the same inputs that did not come to its end."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from elder.errors import UserError
from elder.files import write_json
from elder.fingerprint import Fingerprint, choice_of
from elder.locks import Busy, hold
from elder.params import Params
from elder.progress import say
from elder.record import Record, read_record
from elder.secrecy import without_secrets
from tasks.record_file import outcome_of
from tasks.run.marks import read_mark
from tasks.run.run import PARAMS, START, Run, write_start

FINISHED, INPUTS, LOCK = "run.json", "inputs.json", "lock"
RECORD = "record.json"
# What a folder holds before any stage has run.
OPENED = {LOCK, PARAMS, START, "data", INPUTS, "energy.json", "stages.yaml"}
# sections that change nothing of what a run makes, or no more than rounding
BESIDE_THE_POINT = ("notify", "energy", "launch")
PATIENCE = 1.0  # seconds for a folder that may be free
KEY = 8  # characters of the key in a run's id
# of the record: known after the model was published
LATER = ("artifact", "model_version", "report")


def run_key(settings: Params, method: str) -> str:
    """Return what tells the runs of a project apart: a digest of the method and of what bears on the result."""
    tree = without_secrets(settings.model_dump(mode="json"))
    for section in BESIDE_THE_POINT:
        del tree[section]
    tree["select"] = choice_of(settings)
    return Fingerprint({"method": method, "params": tree}).digest[:KEY]


def new_run_id(key: str) -> str:
    """Return an id for a run: ids sort by time, and other projects' runs of the same second have others."""
    second = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{second}-{key}-{secrets.token_hex(3)}"


@contextmanager
def run_in_folder(
    root: Path, settings: Params, method: str, source: str, revision: str | None
) -> Iterator[Run]:
    """Give a run, and hold the lock of its folder until its end; the arguments are those of `Run`.

    An unfinished folder of the same key that nobody holds is gone on with: what its stages finished is not done again.
    A folder in which nothing was done is taken away again.
    """
    key, runs = run_key(settings, method), root / "runs"
    # of runs that were killed at their very end
    for finished in runs.glob(f"*/{FINISHED}"):
        drop_work(finished.parent)
    unfinished = [folder for folder in folders_of(runs, key) if not is_finished(folder)]
    for folder in [*unfinished, runs / new_run_id(key)]:
        with ExitStack() as held:
            try:
                # others look for a moment whether it is free
                held.enter_context(
                    hold(folder / LOCK, "another process holds this run", PATIENCE)
                )
            except Busy:
                continue
            if is_finished(folder):  # by its own process, since we looked
                continue
            run = Run(root, folder, settings, method, source, revision)
            try:
                write_start(run)
                yield run
            finally:
                if {path.name for path in folder.iterdir()} <= OPENED:
                    shutil.rmtree(folder, ignore_errors=True)
            return
    raise UserError("another process holds the folder of this run; start it again")


def folders_of(runs: Path, key: str) -> list[Path]:
    """Return the folders of runs with a key, the oldest first."""
    return [path for path in sorted(runs.glob(f"*-{key}-*")) if path.is_dir()]


def abandoned_runs(root: Path) -> list[str]:
    """Return the ids of a project's runs that did not come to their end, and that no process holds."""
    folders = sorted(path.parent for path in (root / "runs").glob(f"*/{START}"))
    return [one.name for one in folders if not is_finished(one) and _is_free(one)]


def _is_free(folder: Path) -> bool:
    try:
        with hold(folder / LOCK, ""):
            return True
    except Busy:
        return False


def finished_record(
    root: Path, settings: Params, method: str, since: str = ""
) -> Record | None:
    """Return the record of the latest finished run of the same key, or None; of those made at ``since`` or later."""
    for folder in reversed(folders_of(root / "runs", run_key(settings, method))):
        with suppress(UserError):  # a damaged record: the run is made again
            record = read_finished(folder)
            if record is not None and record.created >= since:
                return record
    return None


def read_finished(folder: Path) -> Record | None:
    """Return the record of a finished run with what became of it, or None where the run is not finished."""
    written, outcome = read_mark(folder / RECORD), read_mark(folder / FINISHED)
    if written is None or outcome is None:
        return None
    return read_record(written | outcome, str(folder / RECORD))


def start_over_unless_same(run: Run, inputs: Fingerprint) -> None:
    """Drop what an earlier attempt did in a run's folder, unless it did it with the same inputs.

    Args:
        run: the run.
        inputs: what stands for data, model and code, none of which its parameters pin.
    """
    path = run.folder / INPUTS
    before = Fingerprint(read_mark(path) or {})
    if inputs.digest != before.digest:
        done = [old for old in run.folder.iterdir() if old.name not in OPENED]
        if done:
            others = ", ".join(inputs.differences(before))
            say(
                f"run {run.run_id} starts over: its earlier attempt had other inputs: {others}"
            )
        for old in done:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    write_json(path, dict(inputs.parts))


def close_run(folder: Path, record: Record) -> None:
    """Mark a run as finished, with what became of it, and delete what only an unfinished one needs.

    Args:
        folder: the run's.
        record: complete, with the version and the place of the published model.
    """
    write_json(folder / FINISHED, {"run_id": record.run_id} | outcome_of(record))
    drop_work(folder)


def drop_work(folder: Path) -> None:
    """Delete the work folders of a run: models and checkpoints between the stages."""
    for work in [folder / "work", *folder.glob("baselines/*/work")]:
        shutil.rmtree(work, ignore_errors=True)


def is_finished(folder: Path) -> bool:
    """Say whether a run came to its end."""
    return read_mark(folder / FINISHED) is not None
