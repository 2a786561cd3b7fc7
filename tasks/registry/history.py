"""The history of a registered model: signed, chained decisions in the store, ``history/<name>/000001.json``, ...

Entries are created and never replaced. Of several writers of the next number one wins, so two decisions can never both
follow the same one: the log is what decides who is champion, and the registry's alias only repeats it.

Each entry is a statement signed by a key that is trusted with decisions, and carries the digest of the entry before it.
What was written before there were signatures, or what is left of a damaged history, counts once somebody who may decide
has accepted it: his entry names the digest of every file before it, and the chain begins anew there.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elder.errors import UserError
from elder.files import parse_json
from elder.names import registered_name_fault
from elder.record import Json
from tasks.provenance.bundle import (
    DECISION,
    BadSignature,
    Signed,
    Statement,
    covered_statement,
    sign_statement,
    verify_bundle,
)
from tasks.provenance.keys import Signer
from tasks.provenance.trust import Trust
from tasks.store.base import Store

READERS = 8  # entries read at once
# what of an entry is known when it is read, and is not part of what was signed
ON_READING = {"signed_by", "sha256"}


class Entry(BaseModel):
    """One decision: from its moment ``version`` is the champion.

    Attributes:
        number: its place in the history, from 1.
        action: what was decided.
        version: who is champion from now on.
        previous: who was; None: nobody.
        digest: of the version's files: version numbers do not survive the loss of a registry.
        by: who decided.
        vouched_by: who says so; None in an entry that was written before identities were asked for.
        at: UTC, ISO 8601.
        reason: why.
        comment: what else was said, such as who filled in the form; nobody vouches for it.
        compared: what the comparison with the champion said.
        before: sha256 of the entry before; None for the first.
        earlier: sha256 of all files before, by number, where this entry accepts them as they lie.
        accepted: what was wrong with them.
        signed_by: name of the trusted key, or what accepted it; known on reading.
        sha256: of its file; known on reading.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int = Field(ge=1)
    action: Literal["promote", "rollback"]
    version: str
    previous: str | None
    digest: str
    by: str
    vouched_by: str | None = None
    at: str
    reason: str
    comment: str | None = None
    compared: str
    before: str | None = None
    earlier: dict[int, str] | None = None
    accepted: str | None = None
    signed_by: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class History:
    """All decisions on a model that can be believed, the oldest first.

    Attributes:
        entries: the decisions.
        faults: what does not hold, a sentence each; what follows a broken entry is not among the entries.
        files: sha256 of every file that is there, by number.
    """

    entries: list[Entry]
    faults: list[str]
    files: dict[int, str]

    @property
    def start(self) -> int:
        """Return the number of the entry from which on the chain is whole: the last that accepted what was before."""
        accepting = [
            entry.number for entry in self.entries if entry.earlier is not None
        ]
        return max(accepting, default=1)

    @property
    def head(self) -> str | None:
        """Return the digest of the last file, which the next entry carries."""
        return self.files[max(self.files)] if self.files else None


def read_history(store: Store, name: str, trust: Trust) -> History:
    """Read all decisions on a model, and check signatures and chain.

    Args:
        store: where decisions lie.
        name: registered model.
        trust: whose decisions count.

    Raises:
        UserError: the store cannot be read.
    """
    numbers = sorted(_numbers(store, name))
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(lambda number: store.read(_key(name, number)), numbers)
        data = {
            number: content
            for number, content in zip(numbers, contents, strict=True)
            if content is not None
        }
    return _Reader(name, data, trust).read()


def append(store: Store, name: str, entry: Entry, signer: Signer) -> bool:
    """Sign and add a decision, or return False: its number is taken by somebody else's."""
    predicate = entry.model_dump(
        mode="json", exclude=ON_READING | {"version", "digest"}
    )
    subject = {f"{name}/{entry.version}": entry.digest}
    data = sign_statement(
        Statement(DECISION, subject, {"name": name, **predicate}), signer
    )
    return store.create(_key(name, entry.number), data)


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


class _Reader:
    """Reads the files of one history.

    Args:
        name: registered model.
        data: content of the files by number.
        trust: whose decisions count.
    """

    def __init__(self, name: str, data: dict[int, bytes], trust: Trust) -> None:
        self.name, self.data, self.trust = name, data, trust
        self.files = {
            number: hashlib.sha256(content).hexdigest()
            for number, content in data.items()
        }

    def read(self) -> History:
        """Read all that can be believed, and say what cannot."""
        signed: dict[int, Entry] = {}
        faults: dict[int, str] = {}
        for number in self.data:
            try:
                signed[number] = self._signed(number)
            except BadSignature as error:
                faults[number] = str(error)
        accepting = [
            number for number, one in signed.items() if one.earlier is not None
        ]
        start = max(accepting, default=1)
        entries: list[Entry] = []
        if accepting:
            entries, changed = self._accepted(signed[start])
            if changed:
                return History([], changed, self.files)
        for number in range(start, max(self.data, default=0) + 1):
            fault = faults.get(number) or self._unchained(
                number, signed.get(number), start
            )
            if fault:
                return History(entries, [fault], self.files)
            entries.append(signed[number])
        return History(entries, [], self.files)

    def _signed(self, number: int) -> Entry:
        """Return an entry whose signature holds, and which is about this model and number.

        Raises:
            BadSignature: if it does not.
        """
        what = f"entry {number} of the history of {self.name}"
        signed = verify_bundle(self.data[number], self.trust, DECISION, what)
        entry = self._entry(number, signed.statement, signed.by, what)
        late = _untimely(signed, entry.at)
        if late:
            raise BadSignature(f"{what}: {late}")
        return entry

    def _entry(self, number: int, statement: Statement, by: str, what: str) -> Entry:
        """Return the entry that a statement holds."""
        (subject, digest), *more = statement.subject.items() or [("", "")]
        name, _, version = subject.rpartition("/")
        tree: dict[str, Json] = dict(statement.predicate)
        named = tree.pop("name", None)
        tree |= {"version": version, "digest": digest, "signed_by": by}
        try:
            entry = Entry.model_validate(tree | {"sha256": self.files[number]})
            datetime.fromisoformat(entry.at)
        except (ValidationError, ValueError):
            raise BadSignature(
                f"{what} is signed and says nothing that can be read"
            ) from None
        if more or {name, named} != {self.name} or entry.number != number:
            raise BadSignature(
                f"{what} is a decision on {subject!r}, number {entry.number}: it does not belong there"
            )
        return entry

    def _unchained(self, number: int, entry: Entry | None, start: int) -> str | None:
        """Say why an entry does not follow the one before it, or None if it does."""
        if entry is None:
            return f"entry {number} of the history of {self.name} is missing"
        if number > start and entry.before != self.files.get(number - 1):
            return (
                f"entry {number} of the history of {self.name} follows another entry {number - 1} than the one that"
                " is there"
            )
        if number == start and entry.earlier is None and entry.before is not None:
            return f"the history of {self.name} lacks what was before entry {number}"
        return None

    def _accepted(self, accepting: Entry) -> tuple[list[Entry], list[str]]:
        """Return the entries that one accepted as they lay, and what of them is not so any more."""
        present = {n: sha for n, sha in self.files.items() if n < accepting.number}
        if present != accepting.earlier:
            wanted = accepting.earlier or {}
            changed = [
                n for n in present.keys() | wanted if present.get(n) != wanted.get(n)
            ]
            listed = ", ".join(map(str, sorted(changed)))
            return [], [
                f"entries {listed} of the history of {self.name} are not what entry {accepting.number} accepted"
            ]
        entries = []
        for number in sorted(present):
            entry = self._covered(number, f"accepted with entry {accepting.number}")
            if entry is not None:
                entries.append(entry)
        return entries, []

    def _covered(self, number: int, by: str) -> Entry | None:
        """Return an entry whose bytes a later one vouches for; None where they say nothing that can be read."""
        what = f"entry {number}"
        try:
            statement = covered_statement(self.data[number], what)
            return self._entry(number, statement, by, what)
        except BadSignature:
            pass
        try:  # of a version that did not sign
            tree = parse_json(self.data[number], what)
            return Entry.model_validate(
                tree | {"signed_by": by, "sha256": self.files[number]}
            )
        except (UserError, ValidationError, TypeError):
            return None


def _untimely(signed: Signed, at: str) -> str | None:
    return signed.key.untimely(datetime.fromisoformat(at)) if signed.key else None


def _numbers(store: Store, name: str) -> set[int]:
    """Return the numbers of the entries that are there; files with other names are not looked at."""
    tree = store.listing(_folder(name))
    # a link counts, too: who reads it is told that it is none of the store's
    matches = (
        re.fullmatch(r"([0-9]{6})\.json", path) for path in tree.sizes | tree.odd
    )
    return {int(match[1]) for match in matches if match and int(match[1])}


def _folder(name: str) -> str:
    fault = registered_name_fault(name)
    if fault:
        raise UserError(f"model name {name!r}: {fault}")
    return f"history/{name}"


def _key(name: str, number: int) -> str:
    return f"{_folder(name)}/{number:06d}.json"
