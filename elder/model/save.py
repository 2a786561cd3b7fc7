"""Save a model as an ordinary checkpoint that stock transformers loads."""

import hashlib
from pathlib import Path
from typing import Any

from elder.files import file_digest, whole_folder
from elder.model.finite import refuse_broken_weights


def save_model(model: Any, tokenizer: Any, folder: Path) -> str:
    """Write checkpoint and tokenizer into a new folder, which appears whole or not at all.

    Args:
        model: in the dtype it should be saved in.
        tokenizer: its tokenizer.
        folder: absent or empty.

    Returns:
        As `weights_file_digest`.

    Raises:
        UserError: if the disk is full or the folder cannot be written.
    """
    with whole_folder(folder) as partial:
        return write_checkpoint(model, tokenizer, partial)


def write_checkpoint(model: Any, tokenizer: Any, folder: Path) -> str:
    """Write checkpoint and tokenizer into a folder that is there; returns as `weights_file_digest`.

    Raises:
        OSError: if they cannot be written.
        UserError: if a weight is not finite: nothing is written then.
    """
    refuse_broken_weights(model, "the model that should be saved")
    try:
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # safetensors wraps a full disk in a type of its own
        raise OSError(str(error)) from None
    return weights_file_digest(folder)


def weights_file_digest(folder: Path) -> str:
    """Return the sha256 of a folder's weights: of the one safetensors file, or over the lines of all of them."""
    files = sorted(folder.glob("*.safetensors"))
    digests = [file_digest(path) for path in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(
        f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True)
    )
    return hashlib.sha256(lines.encode()).hexdigest()
