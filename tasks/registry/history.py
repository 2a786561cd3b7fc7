"""The history of a registered model: an append-only log of decisions in the store, ``history/<name>/000001.json``, ...

Entries are created and never replaced. Of several writers of the next number one wins, so two decisions can never both
follow the same one: the log is what decides who is champion, and the registry's alias only repeats it.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elder.errors import UserError
from elder.names import registered_name_fault
from tasks.store.base import Store

READERS = 8  # entries read at once


class Entry(BaseModel):
    """One decision: from its moment ``version`` is the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int = Field(ge=1)
    action: Literal["promote", "rollback"]
    version: str
    previous: str | None  # who was champion; None: nobody
    digest: str  # of the version's files: version numbers do not survive the loss of a registry
    by: str
    at: str  # UTC, ISO 8601
    reason: str
    compared: str  # what the comparison with the champion said


def read_log(store: Store, name: str) -> list[Entry]:
    """Return all decisions on a model, the oldest first.

    Raises:
        UserError: the store cannot be read, or an entry is missing or damaged.
    """
    numbers = range(1, len(store.paths(_folder(name))) + 1)
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda number: _read_entry(store, name, number), numbers))


def append(store: Store, name: str, entry: Entry) -> bool:
    """Add a decision, or return False: its number is taken by somebody else's."""
    return store.create(
        _key(name, entry.number), (entry.model_dump_json(indent=1) + "\n").encode()
    )


def champions(log: list[Entry]) -> list[str]:
    """Return the versions that a rollback can go back through, the present champion last.

    A promotion puts a version on top; a rollback takes away all above the one it went back to, so that the next
    rollback goes further back, and never forward again.
    """
    stack = [log[0].previous] if log and log[0].previous else []
    for entry in log:
        if entry.action == "rollback" and entry.version in stack:
            while stack[-1] != entry.version:
                stack.pop()
        else:
            stack.append(entry.version)
    return stack


def _read_entry(store: Store, name: str, number: int) -> Entry:
    key = _key(name, number)
    data = store.read(key)
    try:
        entry = Entry.model_validate_json(data or b"")
    except ValidationError:
        entry = None
    if entry is None or entry.number != number:
        fault = "is missing" if data is None else "is damaged"
        raise UserError(
            f"the history of {name} is not whole: {store.url}/{key} {fault}; restore it from a backup"
        )
    return entry


def _folder(name: str) -> str:
    fault = registered_name_fault(name)
    if fault:
        raise UserError(f"model name {name!r}: {fault}")
    return f"history/{name}"


def _key(name: str, number: int) -> str:
    return f"{_folder(name)}/{number:06d}.json"
