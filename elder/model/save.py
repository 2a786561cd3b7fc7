"""Save a model as an ordinary checkpoint that stock transformers loads."""

import hashlib
from pathlib import Path
from typing import Any

from elder.errors import UserError
from elder.files import file_digest, whole_folder
from elder.model.finite import refuse_broken_weights
from elder.model.older import write_older_names, write_tokenizer


def save_model(
    model: Any, tokenizer: Any, folder: Path, source: Path | None = None
) -> str:
    """Write checkpoint and tokenizer into a new folder, which appears whole or not at all.

    Args:
        model: in the dtype it should be saved in.
        tokenizer: its tokenizer.
        folder: absent or empty.
        source: as `write_checkpoint`.

    Returns:
        As `weights_file_digest`.

    Raises:
        UserError: if the disk is full or the folder cannot be written.
    """
    with whole_folder(folder) as partial:
        return write_checkpoint(model, tokenizer, partial, source)


def write_checkpoint(
    model: Any, tokenizer: Any, folder: Path, source: Path | None = None
) -> str:
    """Write checkpoint and tokenizer into a folder that is there; returns as `weights_file_digest`.

    Transformers 4 reads the same model from it as transformers 5.

    Args:
        model: in the dtype it should be saved in.
        tokenizer: its tokenizer.
        folder: to write into.
        source: folder of the checkpoint that both come from, whose tokenizer files and older fields are kept; None:
            there is none.

    Raises:
        OSError: if they cannot be written.
        UserError: if a weight is not finite: nothing is written then.
    """
    refuse_broken_weights(model, "the model that should be saved")
    try:
        model.save_pretrained(folder, safe_serialization=True)
        _as_readable_as_others(folder)
        write_older_names(folder, source, _untied(model))
        write_tokenizer(tokenizer, folder, source)
    except (OSError, UserError):
        raise
    except Exception as error:  # safetensors wraps a full disk in a type of its own
        raise OSError(str(error)) from None
    return weights_file_digest(folder)


def _as_readable_as_others(folder: Path) -> None:
    """Give weights the permissions of the other files; safetensors writes them for their owner alone."""
    mode = (folder / "config.json").stat().st_mode
    for path in folder.glob("*.safetensors"):
        path.chmod(mode & 0o777)


def _untied(model: Any) -> bool:
    """Say whether the head has weights of its own, though the configuration says that it is the embeddings."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return False
    head = getattr(model.get_output_embeddings(), "weight", None)
    return head is not None and head is not model.get_input_embeddings().weight


def weights_file_digest(folder: Path) -> str:
    """Return the sha256 of a folder's weights: of the one safetensors file, or over the lines of all of them."""
    files = sorted(folder.glob("*.safetensors"))
    digests = [file_digest(path) for path in files]
    if len(files) == 1:
        return digests[0]
    whole = hashlib.sha256()
    for digest, path in zip(digests, files, strict=True):
        line = f"{digest}  {path.name}\n"
        whole.update(line.encode())
    return whole.hexdigest()
