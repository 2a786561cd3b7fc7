"""Data of lm-eval's built-in tasks from plain files, where no Hub is reachable; prompts and metrics stay as they are.

In the folder of task data, ``TASK/SPLIT.jsonl`` (``arc_easy/test.jsonl``) stands in for a split of the task's dataset,
and so does ``DATASET/CONFIGURATION.jsonl`` (``blimp/causative.jsonl``) where the dataset has a single split.
"""

from pathlib import Path
from typing import Any

from elder.errors import UserError

SPLITS = (
    "test_split",
    "validation_split",
    "training_split",
)  # lm-eval evaluates the first that a task has


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

    known = entry.cfg or {}
    if (
        entry.yaml_path is None
        or not isinstance(known.get("task"), str)
        or "dataset_path" not in known
    ):
        return  # a group, or a task made of code
    splits = {key: known[key] for key in SPLITS if known.get(key)}
    files = {
        split: file
        for split in splits.values()
        if (file := _file_of(known, split, folder, len(splits)))
    }
    own = folder / entry.name
    if not files and not (own.is_dir() and any(own.glob("*.jsonl"))):
        return
    judged = next(iter(splits.values()))
    if judged not in files:
        raise UserError(
            f"{str(own)!r} has no {judged}.jsonl, the split that the task {entry.name!r} is evaluated on"
        )
    changes = {key: split if split in files else None for key, split in splits.items()}
    source = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
    }
    entry.cfg = load_yaml(entry.yaml_path) | changes | source
    entry.yaml_path = None  # else lm-eval reads the file again


def _file_of(known: dict[str, Any], split: str, folder: Path, splits: int) -> str | None:
    """Return the absolute path of the file that stands in for a split."""
    places = [folder / known["task"] / f"{split}.jsonl"]
    if splits == 1 and known.get("dataset_name"):
        places.append(
            folder / Path(known["dataset_path"]).name / f"{known['dataset_name']}.jsonl"
        )
    return next((str(place.resolve()) for place in places if place.is_file()), None)
