"""What a model's or a dataset's name means: a place on this machine, or an id on the Hub. One rule for all who ask."""

from pathlib import Path


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
