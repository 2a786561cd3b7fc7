"""Data of lm-eval's built-in tasks from plain files, where no Hub is reachable; prompts and metrics stay as they are.

In the folder of task data, ``TASK/SPLIT.jsonl`` (``arc_easy/test.jsonl``) stands in for a split of the task's dataset,
and so does ``DATASET/CONFIGURATION.jsonl`` (``blimp/causative.jsonl``) where the dataset has a single split.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elder.errors import UserError

# lm-eval evaluates the first that a task has
SPLITS = ("test_split", "validation_split", "training_split")


def use_local_data(entry: Any, folder: Path) -> None:
    """Let a task of lm-eval's index read what lies in a folder for it; without any, the entry stays as it is.

    Splits without a file are switched off, so that a task with zero shots needs none but the one it evaluates.

    Args:
        entry: of the index; its configuration is replaced in place.
        folder: of the task data.

    Raises:
        UserError: if there are files, but none for the split that is evaluated.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    config = entry.cfg or {}
    if not _has_dataset(entry, config):
        return
    splits = {}
    for key in SPLITS:
        if config.get(key):
            splits[key] = config[key]
    files = _files_of(config, list(splits.values()), folder)
    own = folder / entry.name
    if not files and not any(own.glob("*.jsonl")):
        return
    judged = next(iter(splits.values()))
    if judged not in files:
        raise UserError(
            f"{str(own)!r} has no {judged}.jsonl, the split that the task {entry.name!r} is evaluated on"
        )
    changes: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    for key, split in splits.items():
        changes[key] = split if split in files else None
    entry.cfg = load_yaml(entry.yaml_path) | changes
    entry.yaml_path = None  # else lm-eval reads the file again


def _has_dataset(entry: Any, config: Mapping[str, Any]) -> bool:
    """Say whether an entry is a task with a dataset: no group, and no task made of code."""
    if entry.yaml_path is None:
        return False
    return isinstance(config.get("task"), str) and "dataset_path" in config


def _files_of(
    config: Mapping[str, Any], splits: list[str], folder: Path
) -> dict[str, str]:
    """Return {split: absolute path of the file that stands in for it}, for those that have one."""
    files = {}
    single = len(splits) == 1
    for split in splits:
        for place in _places(config, split, folder, single):
            if place.is_file():
                files[split] = str(place.resolve())
                break
    return files


def _places(
    config: Mapping[str, Any], split: str, folder: Path, single: bool
) -> list[Path]:
    """Return where the file of a split may lie."""
    places = [folder / config["task"] / f"{split}.jsonl"]
    if single and config.get("dataset_name"):
        dataset = Path(config["dataset_path"]).name
        name = config["dataset_name"]
        places.append(folder / dataset / f"{name}.jsonl")
    return places
