"""The files that hold a checkpoint's weights, and the index where there are several: they must be the model's own."""

from functools import lru_cache
from pathlib import Path

from elder.errors import UserError
from elder.files import is_hub_blob, read_json
from elder.names import path_faults, shown
from elder.progress import say

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
UNREAD = ("*.safetensors", "pytorch_model*.bin", "*.pth", "*.gguf")


def check_indexes(folder: Path) -> None:
    """Refuse a model's folder with an index that leads out of it: transformers would read what lies there.

    Raises:
        UserError: naming what it leads to, or that it is no index.
    """
    for path in sorted(folder.glob("*.index.json")):
        for name in sorted(read_index(path)):
            shard = folder / name
            own = shard.resolve().is_relative_to(folder.resolve())
            if not own and not is_hub_blob(shard):
                raise UserError(
                    f"{str(path)!r} names {shown(name)}, a link that leads out of the model; put a copy in its place"
                )


def weight_files(source: str, revision: str) -> list[Path]:
    """Return the files that hold a checkpoint's weights, as transformers chooses them: one file, or those of the index.

    Args:
        source: a folder, or a Hub id; what is not in its cache is downloaded.
        revision: of a Hub id.

    Raises:
        UserError: if there are none, or the index names one that is not there.
    """
    single = find_file(source, WEIGHTS, revision)
    if single is not None:
        return [single]
    index = find_file(source, INDEX, revision)
    if index is None:
        raise UserError(f"{source!r} has no {WEIGHTS}, and no index of several files")
    files = []
    for name in sorted(read_index(index)):
        file = find_file(source, name, revision)
        if file is None:
            raise UserError(
                f"{source!r} lacks {name}, which its index names; fetch it again"
            )
        files.append(file)
    return files


def find_file(source: str, name: str, revision: str) -> Path | None:
    """Return a file of a folder, or of a repository of the Hub; None where it is not there, or cannot be asked for."""
    from transformers.utils import cached_file

    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    found = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def folder_of(source: str, commit: str | None) -> Path | None:
    """Return where the files of a loaded model lie: the user's folder, or the Hub's copy; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    if Path(source).is_dir():
        return Path(source)
    file = try_to_load_from_cache(source, "config.json", revision=commit)
    return Path(file).parent if isinstance(file, str) else None


def refuse_two_sets(folder: Path) -> None:
    """Refuse a folder with weights in one file and in several: transformers would read the one without a word.

    Raises:
        UserError: naming what would be read, and what lies beside it.
    """
    if not (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return
    others = sorted(read_index(folder / INDEX) - {WEIGHTS})
    if others:
        raise UserError(
            f"{str(folder)!r} holds two sets of weights: {WEIGHTS}, which transformers would read, and "
            f"{len(others)} files, such as {others[0]}, which {INDEX} names; delete what is left over"
        )


@lru_cache  # once a process
def name_unused(folder: Path) -> None:
    """Say which other weights lie in a model's folder and are not read."""
    used = {file.name for file in weight_files(str(folder), "main")}
    found = {file.name for pattern in UNREAD for file in folder.glob(pattern)}
    others = found - used - {ADAPTER}
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        say(
            f"{str(folder)!r} holds {min(others)}{more} beside its weights, unread: those are {', '.join(sorted(used))}"
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
    if "metadata" not in tree:
        raise UserError(
            f'{str(path)!r} has no metadata, which transformers reads: add "metadata": {{}}, or save it anew'
        )
    names = set(weights.values())
    for name, fault in path_faults(names).items():
        raise UserError(
            f"{str(path)!r} names {shown(name)}, which {fault}; do not use this model"
        )
    return names
