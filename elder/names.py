"""What a model's or a dataset's name means, and what a registered model may be called. One rule for all who ask."""

import re
from pathlib import Path

REGISTERED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LONGEST_REGISTERED = 200  # characters: MLflow takes 256, a folder's name 255 bytes


def is_hub_id(name: str) -> bool:
    """Say whether a name, its revision taken off, may be an id on the Hub: ``gpt2`` or ``owner/name``.

    What is on disk is no id, nor is what lies, by its name, in a folder that is here: that is a mistyped path.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(name)
    in_folder = len(path.parts) > 1 and path.parent.is_dir()
    if in_folder or path.exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def registered_name_fault(name: str) -> str | None:
    """Say what is wrong with the name of a registered model, or None.

    The name is a folder in the store, a prefix in S3 and a name in MLflow, which takes neither ``/`` nor ``:``.
    """
    if len(name) > LONGEST_REGISTERED:
        return f"give at most {LONGEST_REGISTERED} characters"
    if not REGISTERED.fullmatch(name):
        return "use letters, digits, '.', '_' and '-', a letter or digit first"
    return None


def split_revision(name: str) -> tuple[str, str | None]:
    """Split ``owner/name@revision`` of the Hub; a folder keeps its name whole."""
    if "@" in name and not Path(name).exists():
        base, _, revision = name.rpartition("@")
        return base, revision
    return name, None


def hub_id(name: str) -> str | None:
    """Return the Hub id that a model's name stands for, or None for a folder, an S3 prefix or a registry's model."""
    base = split_revision(name)[0]
    return base if is_hub_id(base) else None
