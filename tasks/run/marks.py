"""Marks of completion: small JSON files that count only while they are whole."""

from pathlib import Path

from elder.errors import UserError
from elder.files import read_json
from elder.record import Json


def read_mark(path: Path) -> dict[str, Json] | None:
    """Return what a mark says; None where it is absent, empty or unreadable: what it stood for is then done again."""
    try:
        content = read_json(path)
    except UserError:
        return None
    return content if isinstance(content, dict) else None
