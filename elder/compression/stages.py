"""The stages of one compression: learn, regularise, remove, compensate, recover. Each can be killed and run again.

A stage reads what the ones before it left in the work folder, and writes its own result there by rename: a JSON file
that is also the mark of completion, beside a model folder where there is one. ``elder compress`` runs the stages in one
process; a flow runs each in a process of its own. Both give the same bytes.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elder import params
from elder.compensation import NONE, Repair, compensate, get_compensation
from elder.data import choose_blocks
from elder.device import peak_memory_bytes
from elder.errors import UserError
from elder.files import file_digest, write_json
from elder.model.forward import seed_everything
from elder.model.layers import check_removal, find_layers, fixed_layers, remove_layers
from elder.model.load import Loaded, block_length, load_model, parameter_count, weights_digest
from elder.model.save import save_model
from elder.progress import say
from elder.selection import Problem, get_method
from elder.training.loop import Spent
from elder.training.recover import recover
from elder.training.regularise import regularise
from elder.training.synthesis import synthetic_blocks

SYNTHETIC = "recover.synthetic.safetensors"  # what the dense model wrote, in the work folder
STAGES = ("learn", "regularise", "remove", "compensate", "recover")


class Job:
    """One compression in its work folder.

    Args:
        work: folder for results and checkpoints of the stages; made if absent.
        settings: all parameters; ``model.name`` must be a folder or a Hub id.
        calibration: UTF-8 text, or blocks chosen earlier (.safetensors).
    """

    def __init__(self, work: Path, settings: params.Params, calibration: Path) -> None:
        self.work, self.settings, self.calibration = work, settings, calibration
        work.mkdir(parents=True, exist_ok=True)

    def run(self, stage: str) -> dict[str, Any]:
        """Run one stage, or return its result if it is there already."""
        marker = self.work / f"{stage}.json"
        if marker.exists():
            return self.result(stage)
        settings = self.settings
        seed_everything(settings.calibration.seed)
        started = time.monotonic()
        result: dict[str, Any] = RUNNERS[stage](self)
        result["seconds"] = round(time.monotonic() - started, 3)
        write_json(marker, result)
        (self.work / f"{stage}.checkpoint").unlink(missing_ok=True)
        return result

    def result(self, stage: str) -> dict[str, Any]:
        """Return the result of a stage that is done."""
        return json.loads((self.work / f"{stage}.json").read_text(encoding="utf-8"))

    def folder(self, stage: str) -> Path | None:
        """Return the model folder that a stage left, or None if it left the model as it was."""
        folder = self.work / stage
        return folder if folder.is_dir() else None

    def last_folder(self) -> Path:
        """Return the model folder of the last stage that left one."""
        return next(folder for stage in reversed(STAGES) if (folder := self.folder(stage)))

    def load(self, folder: Path | None = None, dtype: torch.dtype | None = None) -> Loaded:
        """Load the dense model, or the one in a folder of this job."""
        wanted = self.settings.model
        if folder is not None:
            wanted = wanted.model_copy(update={"name": str(folder), "revision": None})
        return load_model(wanted, dtype)

    def blocks(self, loaded: Loaded) -> torch.Tensor:
        """Return the calibration blocks, (samples, seq_len) int64."""
        calibration = self.settings.calibration
        seq_len = block_length(calibration.seq_len, loaded.model)
        blocks = choose_blocks(
            self.calibration, loaded.tokenizer, calibration.samples, seq_len, calibration.seed
        )
        size = loaded.model.get_input_embeddings().num_embeddings
        if int(blocks.max()) >= size:
            raise UserError(
                f"{str(self.calibration)!r} was made for another tokenizer: this model knows {size} tokens"
            )
        return blocks


def layers_to_remove(settings: params.Select, count: int) -> int:
    """Return how many of ``count`` layers go.

    Raises:
        UserError: if that is none or all of them, or a protected layer does not exist.
    """
    wrong = [index for index in settings.protect if not 0 <= index < count]
    if wrong:
        raise UserError(
            f"cannot protect layer {wrong[0]}: the model has layers 0 to {count - 1}"
        )
    wanted = settings.layers if settings.layers is not None else round(settings.ratio * count)
    if not 0 < wanted < count:
        asked = (
            "layers"
            if settings.layers is not None
            else f"ratio {settings.ratio:g} rounds to {wanted}:"
        )
        raise UserError(
            f"{asked} {wanted} of {count} layers cannot be removed; remove 1 to {count - 1} of them"
        )
    return wanted


def layers_to_keep(model: nn.Module, settings: params.Select) -> frozenset[int]:
    """Return the layers not offered for removal: those protected, and those the configuration cannot do without.

    Args:
        model: the dense model; its weights are not looked at, so it may be on the meta device.
        settings: how many layers go, and which are protected.

    Raises:
        UserError: if fewer may go than should.
    """
    count = len(find_layers(model))
    wanted = layers_to_remove(settings, count)
    fixed = fixed_layers(model, wanted)
    kept = frozenset(settings.protect) | frozenset(fixed)
    if fixed:
        first, reason = min(fixed.items())
        if count - len(kept) < wanted:
            raise UserError(
                f"{wanted} of {count} layers cannot go, only {count - len(kept)} may: {reason}"
            )
        say(f"layers {sorted(fixed)} are not offered for removal; of layer {first}: {reason}")
    return kept


def select_layers(
    loaded: Loaded, blocks: torch.Tensor, settings: params.Params
) -> dict[str, Any]:
    """Choose the layers that go; returns the selection as a record.

    Raises:
        UserError: if the configuration cannot say the result: before the choice where that is certain, else after it.
    """
    chosen = settings.select
    problem = Problem(
        loaded.model,
        blocks,
        layers_to_remove(chosen, loaded.num_layers),
        layers_to_keep(loaded.model, chosen),
        chosen,
        settings.calibration.seed,
    )
    selection = get_method(chosen.method)(problem)
    try:
        check_removal(loaded.model, selection.removed)
    except UserError as error:
        raise UserError(
            f"{error}; protect some of these layers, or remove another number of them"
        ) from None
    rounds = [
        {
            "removed": list(r.removed),
            "values": list(r.values),
            "checked": [list(pair) for pair in r.checked],
        }
        for r in selection.rounds
    ]
    record = {
        "num_layers": loaded.num_layers,
        "removed": list(selection.removed),
        "scores": {"name": selection.score, "lower_goes": True, "rounds": rounds},
        "spent": asdict(
            Spent(
                selection.tokens_seen, selection.optimizer_steps, search=list(selection.search)
            )
        ),
        "tokens": blocks.numel(),
        "peak_memory_bytes": peak_memory_bytes(loaded.model.device),
    }
    say(
        f"{chosen.method} removes layers {', '.join(map(str, selection.removed))} of 0 to {loaded.num_layers - 1}"
    )
    return record


def _learn(job: Job) -> dict[str, Any]:
    get_compensation(job.settings.compensate.method)  # a wrong name is said before any work
    loaded = job.load()
    blocks = job.blocks(loaded)
    return {
        **select_layers(loaded, blocks, job.settings),
        "parameters": parameter_count(loaded.model),
        "weights_sha256": weights_digest(loaded.model),
        "revision": loaded.revision,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "seq_len": blocks.shape[1],
        "calibration_sha256": file_digest(job.calibration),
        "blocks_sha256": hashlib.sha256(blocks.numpy().tobytes()).hexdigest(),
    }


def _regularise(job: Job) -> dict[str, Any]:
    settings = job.settings.regularise
    if not settings.epochs:
        return {"spent": asdict(Spent()), "peak_memory_bytes": 0}
    if settings.anneal and job.settings.compensate.method != NONE:
        raise UserError(
            f"regularise.anneal is {settings.anneal:g}: layers that fade out leave nothing to mend; "
            "set it to 0, or compensate.method to none"
        )
    loaded = job.load(dtype=torch.float32)
    spent = regularise(
        loaded.model,
        job.result("learn")["removed"],
        job.blocks(loaded),
        settings,
        job.settings.calibration.seed,
        compute_dtype(job),
        job.work / "regularise.checkpoint",
    )
    peak = peak_memory_bytes(loaded.model.device)
    save_model(loaded.model, loaded.tokenizer, job.work / "regularise")
    return {"spent": asdict(spent), "peak_memory_bytes": peak}


def _remove(job: Job) -> dict[str, Any]:
    loaded = job.load(job.folder("regularise"), _kept_dtype(job))
    remove_layers(loaded.model, job.result("learn")["removed"])
    save_model(loaded.model, loaded.tokenizer, job.work / "remove")
    return {
        "parameters": parameter_count(loaded.model),
        "num_layers": len(find_layers(loaded.model)),
    }


def _compensate(job: Job) -> dict[str, Any]:
    settings = job.settings.compensate
    if settings.method == NONE:
        return {"compensation": None, "peak_memory_bytes": 0}
    shallow = job.load(job.folder("remove"), _kept_dtype(job))
    before = job.load(
        job.folder("regularise"), _kept_dtype(job)
    )  # the model that the layers were taken out of
    removed = tuple(job.result("learn")["removed"])
    record = compensate(
        Repair(shallow.model, before.model, removed, job.blocks(shallow), settings)
    )
    peak = peak_memory_bytes(shallow.model.device)
    save_model(shallow.model, shallow.tokenizer, job.work / "compensate")
    return {"compensation": record, "peak_memory_bytes": peak}


def _recover(job: Job) -> dict[str, Any]:
    settings = job.settings.recover
    if settings.mode == "none" or not settings.epochs:
        return {"spent": asdict(Spent()), "peak_memory_bytes": 0}
    seed, dense, synthetic = job.settings.calibration.seed, None, None
    if settings.mode == "distil":
        dense = job.load()
        if settings.synthetic:  # written before the student takes its memory
            blocks = job.blocks(dense)
            count = settings.synthetic * len(blocks)
            synthetic = synthetic_blocks(dense.model, blocks, count, seed, job.work / SYNTHETIC)
    student = job.load(job.folder("compensate") or job.folder("remove"), torch.float32)
    spent = recover(
        student.model,
        dense.model if dense else None,
        job.blocks(student),
        settings,
        seed,
        compute_dtype(job),
        job.work / "recover.checkpoint",
        synthetic,
        job.result("learn")["removed"],
    )
    peak = peak_memory_bytes(student.model.device)
    save_model(student.model, student.tokenizer, job.work / "recover")
    return {"spent": asdict(spent), "peak_memory_bytes": peak}


RUNNERS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "learn": _learn,
    "regularise": _regularise,
    "remove": _remove,
    "compensate": _compensate,
    "recover": _recover,
}


def _kept_dtype(job: Job) -> torch.dtype | None:
    """Return the dtype that the model is kept in until removal: what was trained stays in float32."""
    return torch.float32 if job.folder("regularise") else None


def compute_dtype(job: Job) -> torch.dtype:
    """Return the dtype that training computes in: bfloat16 for every 16-bit model, since it needs no loss scaling."""
    return torch.float32 if job.result("learn")["dtype"] == "float32" else torch.bfloat16
