"""Whether what a run takes in is there: device, disk, model, methods, texts and tasks, code, key.

Each function looks at one thing, cheaply and without loading weights; it returns a sentence of what it saw, or raises a
UserError that says what is missing and how to mend it.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from elder.compensation import COMPENSATIONS
from elder.compression.choice import refuse_offload
from elder.compression.layers import layers_to_keep
from elder.compression.recipes import apply_method
from elder.device import device_of
from elder.engines.llama_cpp import place
from elder.errors import UserError
from elder.evaluation.tasks import check_tasks
from elder.model.check import check_model
from elder.model.hub import DATASET, find
from elder.model.removal import outline
from elder.names import refuse_revision, split_revision
from elder.params import Params
from elder.recovery import RECOVERIES
from elder.selection import get_method
from tasks import sources
from tasks.provenance import signing
from tasks.provenance.keys import refuse_lost
from tasks.provenance.lineage import git, refused_repository, why_no_commit
from tasks.provenance.trust import trust_of
from tasks.store.models import local_model

FREE_GIB = 2  # a small model's run takes less; a large one needs several times its size


@dataclass(frozen=True)
class FoundModel:
    """What ``model.name`` means.

    Attributes:
        source: a local folder, or a Hub id.
        revision: commit of a Hub model.
        family: of the model, as its configuration names it.
        layers: how many it has.
    """

    source: str
    revision: str | None
    family: str
    layers: int


def find_model(settings: Params) -> FoundModel:
    """Find the model and read its configuration; as many layers as asked must be free to go.

    Raises:
        UserError: there is no such model, or its layers cannot be removed so.
    """
    refuse_revision(settings.model.name, settings.model.revision)
    source, named = split_revision(local_model(settings.model.name, settings))
    config = check_model(source, settings.model)
    layers_to_keep(outline(config, settings.model.trust_remote_code), settings.select)
    commit = getattr(config, "_commit_hash", None)
    return FoundModel(
        source=source,
        revision=commit or named or settings.model.revision,
        family=config.model_type,
        layers=config.get_text_config(decoder=True).num_hidden_layers,
    )


def device(settings: Params, _: Path) -> str:
    """Look for the device."""
    chosen = device_of(settings.model.device)
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return f"cpu, {torch.get_num_threads()} threads"


def disk(_: Params, root: Path) -> str:
    """Look for free space."""
    free = shutil.disk_usage(root).free / 2**30
    if free < FREE_GIB:
        raise UserError(
            f"{free:.1f} GiB free in {str(root)!r}, at least {FREE_GIB} are needed; free some space"
        )
    return f"{free:.0f} GiB free"


def model(settings: Params, _: Path) -> str:
    """Look for the model, and whether as many layers may go as should."""
    dense = find_model(settings)
    return f"{settings.model.name}, {dense.family} of {dense.layers} layers"


def methods(settings: Params, _: Path) -> str:
    """Look up the names of methods: of the selection, the compensation, the recovery and the baselines."""
    chosen = (settings.select, settings.compensate, settings.recover)
    names = [section.chosen for section in chosen]
    get_method(settings.select.method)
    COMPENSATIONS.refuse_unknown(settings.compensate.method)
    RECOVERIES.refuse_unknown(settings.recover.mode)
    refuse_offload(settings.select, settings.compensation)
    for name in settings.evaluate.baselines:
        refuse_offload(apply_method(settings, name).select)
        names.append(name)
    return ", ".join(names)


def calibration(settings: Params, root: Path) -> str:
    """Look for the calibration text: on disk, or on the Hub."""
    chosen = settings.calibration
    kind = sources.kind_of(chosen.source, root)
    if kind != sources.HUB:
        return chosen.source
    commit = find(chosen.source, chosen.revision, DATASET).commit
    return f"{chosen.source} of the Hub, commit {commit[:12]}"


def evaluation(settings: Params, root: Path) -> str:
    """Look for the texts and the tasks of the evaluation."""
    chosen = settings.evaluate
    check_tasks(chosen.tasks, root / chosen.task_data if chosen.task_data else None)
    for name in (chosen.in_domain, chosen.out_of_domain):
        if not (root / name).is_file():
            raise UserError(
                f"there is no evaluation text {name!r}; set evaluate.in_domain and evaluate.out_of_domain"
            )
    return f"2 texts, tasks {', '.join(chosen.tasks) or 'none'}"


def engines(settings: Params, _: Path) -> str:
    """Look for the engines that the gate asks."""
    if settings.gate.engines:
        place()
    return f"{', '.join(settings.gate.engines) or 'none'} beside transformers"


def code(_: Params, root: Path) -> str:
    """Look for the commit of the code; a folder that is no repository has none, and its runs' records name none."""
    commit = git(root, "rev-parse", "HEAD")
    if commit is not None:
        return f"commit {commit[:12]}"
    why = why_no_commit(root)
    if refused_repository(root):
        raise UserError(why)
    return f"{why}: the record will name none"


def key(settings: Params, root: Path) -> str:
    """Look for the key that signs; where there is none yet, whether it can be made."""
    chosen = settings.signing
    if chosen.keyless:
        signing.check_key(chosen, root)
        return "keyless, through Sigstore"
    if chosen.command is not None:
        return f"by {chosen.command}"
    if chosen.private_key is None:
        return "none: models are not signed, and none can be promoted"
    path = root / chosen.private_key
    if path.exists():
        signing.check_key(chosen, root)
        return chosen.private_key
    refuse_lost(path, trust_of(chosen, root))
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(
            f"the key {chosen.private_key!r} cannot be made: {str(parent)!r} is no folder that can be written to;"
            " set signing.private_key"
        )
    return f"{chosen.private_key}, made by the first run"
