"""One compression in its work folder: which stages are done, what each left there, and that no other process is at it.

    key.json            what everything here depends on; another compression's work is dropped
    lock                held by the process that works here; the kernel frees it however that process ends
    STAGE.json          the result of a stage that is done: its marker
    STAGE/              the model that it left, if it changed any
    STAGE.checkpoint    how far a training had come that is not done

A marker is written last, and says the digest of each file of the model folder that it vouches for. A marker that cannot
be read, or whose model folder is not what it was, is none: the stage runs again, and ends with the same bytes.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError

from elder import params
from elder.compression.results import Learnt, StageResult
from elder.data import choose_blocks
from elder.errors import UserError, nearest
from elder.files import file_digest, read_json, write_json
from elder.fingerprint import Fingerprint, calibration_parts, model_parts, recipe_of
from elder.locks import hold
from elder.model.forward import seed_everything
from elder.model.load import (
    Loaded,
    block_length,
    check_tokens,
    load_divided,
    put_together,
)
from elder.model.offload import Offload
from elder.model.save import save_model
from elder.parallel.ranks import by_first, count, gather, is_first, told
from elder.process import give_memory_back
from elder.progress import say
from elder.training.checkpoint import remove_checkpoint
from elder.training.micro_batch import free_memory

# seconds; a model that took as long is large, and what is left of it in circles of references would lie beside the next
LONG = 1.0
KEY = "key.json"
LOCK = "lock"


@dataclass(frozen=True)
class Stage:
    """One stage of a compression.

    Attributes:
        name: of the stage, of its marker and of its model folder.
        run: does it. It finds what earlier stages left in the job, and calls `Job.keep` where it changed the model.
        section: of the parameters that sets it up; None where it has none of its own.
        result: what it returns.
        joins: whether it runs in the process of the stage before it, in a flow: it is short with these parameters.
        divided: whether several processes do it together, on a model that is divided among them; the first does the
            rest alone.
    """

    name: str
    run: Callable[["Job"], StageResult]
    section: str | None
    result: type[StageResult]
    joins: Callable[[params.Params], bool] = lambda _: False
    divided: Callable[[params.Params], bool] = lambda _: False


def get_stage(stages: Sequence[Stage], name: str) -> Stage:
    """Return the stage of a name.

    Raises:
        UserError: for an unknown name, with the nearest valid one.
    """
    for stage in stages:
        if stage.name == name:
            return stage
    names = [stage.name for stage in stages]
    raise UserError(f"there is no stage {name!r}; {nearest(name, names)}")


def processes(stages: Sequence[Stage], settings: params.Params) -> list[str]:
    """Return the stages by process of a flow, in order: their names, with commas where several share one."""
    groups: list[str] = []
    for stage in stages:
        if stage.joins(settings):
            groups[-1] += f",{stage.name}"
        else:
            groups.append(stage.name)
    return groups


class Job:
    """One compression in its work folder; `open_job` opens it.

    Args:
        work: folder for results and checkpoints of the stages.
        settings: all parameters; ``model.name`` must be a folder or a Hub id.
        calibration: UTF-8 text, or blocks chosen earlier (.safetensors).
        stages: all stages, in order.
    """

    def __init__(
        self,
        work: Path,
        settings: params.Params,
        calibration: Path,
        stages: Sequence[Stage],
    ) -> None:
        self.work, self.settings, self.calibration = work, settings, calibration
        self.stages = stages
        self._results: dict[str, StageResult] = {}  # found whole by this process
        self._kept: dict[
            str, dict[str, str]
        ] = {}  # {stage under way: files of its model folder}

    def run(self, name: str) -> StageResult:
        """Run one stage, or return its result if it is done already.

        Raises:
            UserError: for an unknown stage, or what the stage refuses.
        """
        stage = get_stage(self.stages, name)
        result = self._results.get(name) or by_first(lambda: self._read(stage))
        if result is None:
            result = self._run(stage)
        self._results[name] = result
        return result

    def run_all(self) -> None:
        """Run all stages that are not done."""
        for stage in self.stages:
            self.run(stage.name)

    @property
    def learnt(self) -> Learnt:
        """Return the choice of layers."""
        result = self.run("learn")
        assert isinstance(result, Learnt)
        return result

    def marker(self, name: str) -> Path:
        """Return the file that says that a stage is done."""
        return self.work / f"{name}.json"

    def checkpoint(self, name: str) -> Path:
        """Return the file that a stage's training goes on from; see `elder.training.checkpoint`."""
        return self.work / f"{name}.checkpoint"

    def folder(self, name: str) -> Path | None:
        """Return the model folder that a stage left, or None if it left the model as it was."""
        return self.work / name if self.run(name).files else None

    def last_folder(self, before: str | None = None) -> Path:
        """Return the model folder of the last stage that left one, of those before a stage or of all."""
        found: list[Path] = []
        for stage in self.stages:
            if stage.name == before:
                break
            folder = self.folder(stage.name)
            if folder:
                found.append(folder)
        return found[-1]

    def keep(self, name: str, loaded: Loaded) -> None:
        """Save the model that a stage made into its folder."""
        folder = self.work / name
        together = put_together(loaded)
        if is_first():
            save_model(together.model, loaded.tokenizer, folder, loaded.folder)
            self._kept[name] = _digests(folder)

    def load(
        self,
        folder: Path | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        offload: Offload = "none",
    ) -> Loaded:
        """Load the dense model, or the one in a folder of this job; several processes divide it among them.

        Args:
            folder: None: the dense model.
            dtype: None: that of the checkpoint, or the one asked for.
            device: in place of the one that work is done on.
            offload: where its layers lie, as in `elder.model.load.load_model`.
        """
        wanted = self.settings.model
        if folder is not None:
            wanted = wanted.model_copy(update={"name": str(folder), "revision": None})
        if device is not None:
            wanted = wanted.model_copy(update={"device": device})
        return load_divided(wanted, dtype, self.settings.calibration.bos, offload)

    def blocks(self, loaded: Loaded) -> torch.Tensor:
        """Return the calibration blocks, (samples, seq_len) int64."""
        wanted = self.settings.calibration
        seq_len = block_length(wanted.seq_len, loaded.model)
        blocks = choose_blocks(
            self.calibration,
            loaded.tokenizer,
            wanted.samples,
            seq_len,
            wanted.seed,
            loaded.bos,
        )
        check_tokens(loaded, blocks, self.calibration)
        return blocks

    def _read(self, stage: Stage) -> StageResult | None:
        """Return the result of a stage that is done; None where it is not, or what it left is damaged."""
        marker = self.marker(stage.name)
        if not marker.exists():
            return None
        try:
            result = stage.result.model_validate(read_json(marker))
        except (UserError, ValidationError):
            say(f"{str(marker)!r} cannot be read: {stage.name} runs again")
            return None
        folder = self.work / stage.name
        if result.files and _digests(folder) != result.files:
            say(f"{str(folder)!r} is not what {stage.name} left there: it runs again")
            return None
        return result

    def _run(self, stage: Stage) -> StageResult:
        """Run a stage that is not done; what a killed attempt left without a marker is dropped."""
        if count() > 1:
            number = self.stages.index(stage)
            for earlier in self.stages[:number]:
                self.run(earlier.name)  # by all of them, whoever does this one
        if is_first():
            self.marker(stage.name).unlink(missing_ok=True)
            shutil.rmtree(self.work / stage.name, ignore_errors=True)
        seed_everything(self.settings.calibration.seed)
        started = time.monotonic()
        work = partial(stage.run, self)
        together = count() == 1 or stage.divided(self.settings)
        result = work() if together else by_first(work)
        seconds = round(time.monotonic() - started, 3)
        if seconds > LONG:
            free_memory()
        files = self._kept.pop(stage.name, {})
        more = {"seconds": seconds, "files": files}
        result = told(result.model_copy(update=more))
        if is_first():
            write_json(self.marker(stage.name), result.model_dump(mode="json"))
            remove_checkpoint(self.checkpoint(stage.name))
        return result


@contextmanager
def open_job(
    work: Path,
    settings: params.Params,
    calibration: Path,
    stages: Sequence[Stage],
    patience: float = 0,
) -> Iterator[Job]:
    """Open a work folder, and hold it; what lies there from another compression is dropped.

    Args:
        work: the folder; made if it is absent.
        settings: all parameters.
        calibration: UTF-8 text or calibration blocks.
        stages: all stages, in order.
        patience: seconds to wait for a process that works there, and may be about to end.

    Raises:
        UserError: if another process works in the folder; nothing is changed then.
    """
    refusal = f"another process works in {str(work)!r}: wait for its end, or name another output"
    # refuses before anything is made
    wanted = job_fingerprint(settings, calibration, stages)
    job = Job(work, settings, calibration, stages)
    if settings.model.max_memory is not None:
        give_memory_back()
    if not is_first():
        gather(None)  # once the first process holds the folder
        yield job
        return
    with hold(work / LOCK, refusal, patience):
        _drop_other_work(job, wanted)
        gather(None)
        yield job


def _drop_other_work(job: Job, wanted: Fingerprint) -> None:
    """Leave in a work folder what was made with the same inputs; begin it anew, with its key, where it was not."""
    before = _read_key(job.work / KEY)
    if before is not None and before.digest == wanted.digest:
        return
    if before is not None:
        changed = ", ".join(before.differences(wanted))
        say(
            f"{str(job.work)!r} was made with another value of: {changed}; starting anew"
        )
    _empty(job.work)
    key = {"digest": wanted.digest, "parts": dict(wanted.parts)}
    try:
        write_json(job.work / KEY, key)
    except OSError:  # a full disk: nothing was begun
        remove_work(job)
        raise


def job_fingerprint(
    settings: params.Params, calibration: Path, stages: Sequence[Stage]
) -> Fingerprint:
    """Return what the results in a work folder depend on: the stages' sections, the model, the calibration text."""
    sections = {stage.section for stage in stages if stage.section}
    parts = settings.model_dump(mode="json", include=sections) | recipe_of(settings)
    return Fingerprint(
        parts | model_parts(settings) | calibration_parts(settings, calibration)
    )


def _read_key(path: Path) -> Fingerprint | None:
    """Return the fingerprint that a work folder was made for; None where there is none that can be read."""
    try:
        parts = read_json(path)["parts"]
        return Fingerprint({**parts})
    except (UserError, KeyError, TypeError):
        return None


def remove_work(job: Job) -> None:
    """Remove a work folder that this process holds: its lock last, so that nobody takes up what is being removed."""
    _empty(job.work)
    (job.work / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # another process has just begun there
        job.work.rmdir()


def _empty(work: Path) -> None:
    """Remove all that a work folder holds, but for its lock."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _digests(folder: Path) -> dict[str, str]:
    """Return {name: sha256} of the files of a model folder; nothing where it is not there."""
    if not folder.is_dir():
        return {}
    return {
        path.name: file_digest(path)
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
