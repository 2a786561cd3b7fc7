"""Promote a registered version to champion, or roll back to the champion before it.

    plan = plan_promotion(settings, Path.cwd(), "my-model", "3")     # all checks; changes nothing
    entry = carry_out(settings, Path.cwd(), plan, "anna@host", "better on our texts")

A plan names the number of the history entry that it wants to write. If somebody else decided in the meantime, that
number is taken and the plan is refused: nobody overwrites a decision that he has not seen. The entry is written first,
the registry follows; whoever finds the registry behind the history, after a crash in between, moves it on.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from elder import params
from elder.errors import UserError
from elder.evaluation.gate import beside_champion
from elder.record import Champion, Number, Record, Row
from tasks.registry.champion import champion_of, stored_record
from tasks.registry.client import Registry
from tasks.registry.connection import sqlite_file
from tasks.registry.history import Entry, append, champions, read_log
from tasks.registry.versions import (
    Gone,
    Version,
    find_version,
    is_told,
    same_model,
    write_history,
)
from tasks.store.base import Store
from tasks.store.open import configured_store, open_model

BEGINS = "It was the champion already, in the registry; the history begins with it."
LONGEST_REASON = 1000  # characters; the registry's tags take a few thousand


class Refused(UserError):
    """A check said no to an input that is right."""


class Plan(BaseModel):
    """A decision that was checked and not yet made."""

    model_config = ConfigDict(frozen=True)
    action: Literal["promote", "rollback"]
    name: str
    number: int
    version: str
    previous: str | None
    digest: str
    compared: str
    # by version: layers, perplexities and mean over tasks, as its record has them
    measured: dict[str, dict[str, Number | None]]


def plan_promotion(
    settings: params.Params, root: Path, name: str, version: str, force: bool = False
) -> Plan:
    """Check all that a promotion needs: the gate's verdict, the comparison with the champion, the stored bytes.

    Args:
        settings: registry, store, and the gate's limit for the comparison.
        root: folder below which a relative local store lies.
        name: registered model.
        version: number of the version that should become champion.
        force: go on where the comparison says no, or cannot be made.

    Raises:
        Refused: a check said no.
        UserError: there is no such version, it is champion already by the history, or registry or store cannot be used.
    """
    registry, store = _open(settings, root, name)
    log, gone = _settle(registry, store)
    version_found = _passed_version(registry, version)
    if gone:
        champion: Champion | None = Champion(version=log[-1].version, fault=gone)
    else:
        champion = champion_of(registry, settings.store)
    itself = champion is not None and champion.version == version
    if itself and log:
        raise UserError(f"version {version} of {name} is the champion already")
    record = _record(name, version_found, settings.store)
    # no decision is known: the history was lost with its store, or never was
    if itself:
        champion, compared = None, BEGINS
    else:
        title = f"version {version} of {name}"
        compared = _compare(settings.gate, record.candidate, champion, force, title)
    _check_bytes(name, version_found, settings.store)
    measured = {version: _numbers(record)}
    if champion and champion.url and not champion.fault:
        measured[champion.version] = _numbers(
            stored_record(champion.url, settings.store)
        )
    return Plan(
        action="promote",
        name=name,
        number=len(log) + 1,
        version=version,
        previous=champion.version if champion else None,
        digest=version_found.digest,
        compared=compared,
        measured=measured,
    )


def _passed_version(registry: Registry, version: str) -> Version:
    registered = find_version(registry, version)
    if registered.gate.rpartition(" ")[2] != "passed":
        raise Refused(
            f"version {version} of {registry.name} did not pass the gate (gate: {registered.gate}): promote another"
        )
    return registered


def plan_rollback(settings: params.Params, root: Path, name: str) -> Plan:
    """Find the champion before the present one, and check its stored bytes.

    Raises:
        Refused: its bytes are not what they were.
        UserError: there is none, its number means another model now, or registry or store cannot be used.
    """
    registry, store = _open(settings, root, name)
    log, _ = _settle(registry, store)
    stack = champions(log)
    if len(stack) < 2:
        raise UserError(
            f"{name} has no champion to go back to: elder history {name} shows who was champion"
        )
    back = find_version(registry, stack[-2])
    for entry in log:
        if entry.version == back.version:
            same_model(registry, back.version, back.digest, entry.digest)
    _check_bytes(name, back, settings.store)
    return Plan(
        action="rollback",
        name=name,
        number=len(log) + 1,
        version=back.version,
        previous=stack[-1],
        digest=back.digest,
        compared="A rollback compares nothing.",
        measured={},
    )


def carry_out(
    settings: params.Params, root: Path, plan: Plan, by: str, reason: str
) -> Entry:
    """Make a decision that was checked: first the entry in the history, then the registry.

    Raises:
        Refused: somebody else decided since the plan was made.
        UserError: the reason is missing or too long, or registry or store cannot be used.
    """
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise UserError(
            f"a reason of {len(reason)} characters: say in 1 to {LONGEST_REASON} why, the history keeps it"
        )
    registry, store = _open(settings, root, plan.name)
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    told = plan.model_dump(exclude={"name", "measured"})
    entry = Entry(**told, by=by, at=at, reason=reason.strip())
    if not append(store, plan.name, entry):
        first = read_log(store, plan.name)[plan.number - 1]
        raise Refused(
            f"{first.by} was faster: {first.action} to version {first.version} of {plan.name} at {first.at}"
            f" ({first.reason}); look at elder history {plan.name}, then decide again"
        )
    try:
        settle(registry, store)
    except UserError as error:
        raise UserError(
            f"the decision stands in the history of {plan.name}, but the registry could not be told ({error}):"
            f" elder history {plan.name} tells it"
        ) from error
    return entry


def settle(registry: Registry, store: Store, whole: bool = False) -> list[Entry]:
    """Move the registry on to what the history says, where it is behind, and return the history.

    After each change the history is read again: whoever tells an older decision at the same moment as somebody else a
    newer one must not have the last word.

    Args:
        registry: of the model.
        store: where the history lies.
        whole: look at every tag, even where the last decision was told.
    """
    told: Entry | None = None
    while True:
        log = read_log(store, registry.name)
        if not log:
            return log
        # that all tags but the last are there
        trusted = told == log[-1] if told else not whole
        if trusted and is_told(registry, log[-1]):
            return log
        write_history(registry, log)
        told = log[-1]


def history(
    settings: params.Params, root: Path, name: str, whole: bool = False
) -> tuple[list[Entry], str]:
    """Return all decisions on a model, and what kept the registry from being moved on to the last of them, or ''."""
    registry, store = _open(settings, root, name)
    log = read_log(store, name)
    try:
        return settle(registry, store, whole), ""
    except UserError as error:  # the history can be read where the registry is lost
        return log, str(error)


def _settle(registry: Registry, store: Store) -> tuple[list[Entry], str]:
    """Settle, unless the registry lost the champion: then another can follow; returns the history and that fault."""
    try:
        return settle(registry, store), ""
    except Gone:
        return read_log(store, registry.name), "the registry does not have it any more"


def _open(settings: params.Params, root: Path, name: str) -> tuple[Registry, Store]:
    uri = settings.registry.tracking_uri
    database = sqlite_file(uri)
    if database and not database.exists():
        raise UserError(
            f"there is no registry {uri} here: give this command in the project's folder, or set registry.tracking_uri"
        )
    registry = Registry(settings.registry.model_copy(update={"name": name}))
    return registry, configured_store(settings.store, root)


def _record(name: str, candidate: Version, store: params.Store) -> Record:
    try:
        record = stored_record(candidate.url, store)
        _ = record.candidate  # there must be one to compare
    except UserError as error:
        raise Refused(
            f"version {candidate.version} of {name} cannot be compared with anything: {error}"
        ) from error
    return record


def _compare(
    gate: params.Gate, row: Row, champion: Champion | None, force: bool, candidate: str
) -> str:
    """Return what the gate's rule for the champion says, which the history keeps."""
    rule = beside_champion(gate.max_champion_ratio, row, champion)
    if rule is None:
        return "Not compared with the champion: gate.max_champion_ratio is null."
    if rule.passed:
        return rule.reason
    if not force:
        raise Refused(
            f"{candidate} was not promoted. {rule.reason} With --force it is promoted all the same."
        )
    return f"Forced: {rule.reason}"


def _check_bytes(name: str, version: Version, settings: params.Store) -> None:
    store, prefix = open_model(version.url, settings.endpoint, settings.region)
    faults = store.verify(prefix)
    if prefix.rpartition("/")[2] != version.digest:
        faults.append("they are not those of its digest")
    if faults:
        raise Refused(
            f"version {version.version} of {name} has other stored bytes than were registered: {'; '.join(faults)};"
            " do not use it, promote another version"
        )


def _numbers(record: Record) -> dict[str, Number | None]:
    """Return layers, perplexities and the mean over tasks of a record's candidate."""
    row = record.candidate
    numbers: dict[str, Number | None] = {"layers": len(record.kept)}
    for domain, measured in row.perplexity.items():
        numbers[domain] = measured.perplexity
    numbers["tasks"] = row.task_mean.value if row.task_mean else None
    return numbers
