"""The index of a checkpoint in several files: the files that it names must be the model's own."""

from pathlib import Path

from elder.errors import UserError
from elder.files import in_hub_blobs, read_json
from elder.names import path_faults, shown

INDEX = "model.safetensors.index.json"


def check_indexes(folder: Path) -> None:
    """Refuse a model's folder with an index that leads out of it: transformers would read what lies there.

    Raises:
        UserError: naming what it leads to, or that it is no index.
    """
    for path in sorted(folder.glob("*.index.json")):
        for name in sorted(read_index(path)):
            shard = folder / name
            own = shard.resolve().is_relative_to(folder.resolve())
            if not own and not in_hub_blobs(folder, shard):
                raise UserError(
                    f"{str(path)!r} names {shown(name)}, a link that leads out of the model; put a copy in its place"
                )


def check_hub_index(source: str, revision: str) -> None:
    """Refuse a model of the Hub with an index that leads out of the Hub's cache; most have none.

    Raises:
        UserError: naming what it leads to, or that it is no index.
    """
    from transformers.utils import cached_file

    path = cached_file(
        source,
        INDEX,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is not None:
        read_index(Path(path))


def read_index(path: Path) -> set[str]:
    """Return the files that an index names, each of which may be called so.

    Raises:
        UserError: it names something else, or cannot be read.
    """
    tree = read_json(path)
    weights = tree.get("weight_map") if isinstance(tree, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) for name in weights.values()
    ):
        raise UserError(f"{str(path)!r} has no weight_map; save the model there again")
    names = set(weights.values())
    for name, fault in path_faults(names).items():
        raise UserError(
            f"{str(path)!r} names {shown(name)}, which {fault}; do not use this model"
        )
    return names
