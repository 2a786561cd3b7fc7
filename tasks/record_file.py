"""The one way in which a record is written: beside the model, in the run's folder and on the MLflow run are copies."""

import json
from pathlib import Path

from elder.files import write_text
from elder.record import Json, Record, json_safe, plain
from elder.secrecy import without_secrets

# What became of a run: known after its record was published, and kept in its run.json.
OUTCOME = ("artifact", "model_version", "report")


def record_text(record: Record) -> str:
    """Return a record as JSON, without secrets and outcome: the same bytes wherever a copy of it lies."""
    tree = json_safe(without_secrets(plain(record)))
    for key in OUTCOME:
        tree.pop(key, None)
    return json.dumps(tree, indent=1) + "\n"


def write_record(record: Record, path: Path) -> None:
    """Write a record."""
    write_text(path, record_text(record))


def outcome_of(record: Record) -> dict[str, Json]:
    """Return what became of a run: where its model lies, the version that was registered, and the report."""
    tree = plain(record)
    return {key: tree[key] for key in OUTCOME if key in tree}
