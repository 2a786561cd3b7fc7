"""Promote a registered version to champion, or roll back to the champion before it.

    plan = plan_promotion(settings, Path.cwd(), "my-model", "3")     # all checks; changes nothing
    entry = carry_out(settings, Path.cwd(), plan, "anna@host", "better on our texts")

A plan names the number of the history entry that it wants to write. If somebody else decided in the meantime, that
number is taken and the plan is refused: nobody overwrites a decision that he has not seen. The entry is written first,
the registry follows; whoever finds the registry behind the history, after a crash in between, moves it on.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from elder import params
from elder.errors import UserError
from elder.evaluation.gate import beside_champion
from tasks.registry.champion import present_champion, stored_record
from tasks.registry.history import Entry, append, champions, read_log
from tasks.registry.versions import Gone, Version, find_version, is_told, same_model, tell
from tasks.store.base import Store
from tasks.store.open import configured_store, open_model

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
    measured: dict[
        str, dict[str, Any]
    ]  # by version: layers, perplexities and mean over tasks, as its record has them


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
    named, store = _open(settings, root, name)
    log, gone = _settle(named, store)
    candidate = find_version(named, version)
    if candidate.gate.rpartition(" ")[2] != "passed":
        raise Refused(
            f"version {version} of {name} did not pass the gate (gate: {candidate.gate}): promote another"
        )
    champion = (
        {"version": log[-1].version, "fault": gone}
        if gone
        else present_champion.fn(named, settings.store)
    )
    itself = champion is not None and champion["version"] == version
    if itself and log:
        raise UserError(f"version {version} of {name} is the champion already")
    record = _record(name, candidate, settings.store)
    if itself:  # and no decision is known: the history was lost with its store, or never was
        champion, compared = (
            None,
            "It was the champion already, in the registry; the history begins with it.",
        )
    else:
        compared = _compare(
            settings.gate, _row(record), champion, force, f"version {version} of {name}"
        )
    _check_bytes(name, candidate, settings.store)
    measured = {version: _numbers(record)}
    if champion and "fault" not in champion:
        measured[champion["version"]] = _numbers(stored_record(champion["url"], settings.store))
    return Plan(
        action="promote",
        name=name,
        number=len(log) + 1,
        version=version,
        previous=champion and champion["version"],
        digest=candidate.digest,
        compared=compared,
        measured=measured,
    )


def plan_rollback(settings: params.Params, root: Path, name: str) -> Plan:
    """Find the champion before the present one, and check its stored bytes.

    Raises:
        Refused: its bytes are not what they were.
        UserError: there is none, its number means another model now, or registry or store cannot be used.
    """
    named, store = _open(settings, root, name)
    log, _ = _settle(named, store)
    stack = champions(log)
    if len(stack) < 2:
        raise UserError(
            f"{name} has no champion to go back to: elder history {name} shows who was champion"
        )
    back = find_version(named, stack[-2])
    for entry in log:
        if entry.version == back.version:
            same_model(named, back.version, back.digest, entry.digest)
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


def carry_out(settings: params.Params, root: Path, plan: Plan, by: str, reason: str) -> Entry:
    """Make a decision that was checked: first the entry in the history, then the registry.

    Raises:
        Refused: somebody else decided since the plan was made.
        UserError: the reason is missing or too long, or registry or store cannot be used.
    """
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise UserError(
            f"a reason of {len(reason)} characters: say in 1 to {LONGEST_REASON} why, the history keeps it"
        )
    named, store = _open(settings, root, plan.name)
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
        settle(named, store)
    except UserError as error:
        raise UserError(
            f"the decision stands in the history of {plan.name}, but the registry could not be told ({error}):"
            f" elder history {plan.name} tells it"
        ) from error
    return entry


def settle(named: params.Registry, store: Store, whole: bool = False) -> list[Entry]:
    """Move the registry on to what the history says, where it is behind, and return the history.

    After each change the history is read again: whoever tells an older decision at the same moment as somebody else a
    newer one must not have the last word.

    Args:
        named: registry, with the model's name.
        store: where the history lies.
        whole: look at every tag, even where the last decision was told.
    """
    told: Entry | None = None
    while True:
        log = read_log(store, named.name)
        if not log or (told == log[-1] or not (told or whole)) and is_told(named, log[-1]):
            return log
        tell(named, log)
        told = log[-1]


def history(
    settings: params.Params, root: Path, name: str, whole: bool = False
) -> tuple[list[Entry], str]:
    """Return all decisions on a model, and what kept the registry from being moved on to the last of them, or ''."""
    named, store = _open(settings, root, name)
    log = read_log(store, name)
    try:
        return settle(named, store, whole), ""
    except UserError as error:  # the history can be read where the registry is lost
        return log, str(error)


def _settle(named: params.Registry, store: Store) -> tuple[list[Entry], str]:
    """Settle, unless the registry lost the champion: then another can follow; returns the history and that fault."""
    try:
        return settle(named, store), ""
    except Gone:
        return read_log(store, named.name), "the registry does not have it any more"


def _open(settings: params.Params, root: Path, name: str) -> tuple[params.Registry, Store]:
    uri = settings.registry.tracking_uri
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(
            f"there is no registry {uri} here: give this command in the project's folder, or set registry.tracking_uri"
        )
    return settings.registry.model_copy(update={"name": name}), configured_store(
        settings.store, root
    )


def _record(name: str, candidate: Version, store: params.Store) -> dict[str, Any]:
    try:
        return stored_record(candidate.url, store)
    except UserError as error:
        raise Refused(
            f"version {candidate.version} of {name} cannot be compared with anything: {error}"
        ) from error


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    return next((row for row in record.get("rows", []) if row["kind"] == "candidate"), {})


def _compare(
    gate: params.Gate,
    row: dict[str, Any],
    champion: dict[str, Any] | None,
    force: bool,
    candidate: str,
) -> str:
    """Return what the gate's rule for the champion says, which the history keeps."""
    rule = beside_champion(gate.max_champion_ratio, row, champion)
    if rule is None:
        return "Not compared with the champion: gate.max_champion_ratio is null."
    if rule["passed"]:
        return str(rule["reason"])
    if not force:
        raise Refused(
            f"{candidate} was not promoted. {rule['reason']} With --force it is promoted all the same."
        )
    return f"Forced: {rule['reason']}"


def _check_bytes(name: str, found: Version, settings: params.Store) -> None:
    store, prefix = open_model(found.url, settings.endpoint, settings.region)
    faults = store.verify(prefix)
    if prefix.rpartition("/")[2] != found.digest:
        faults.append("they are not those of its digest")
    if faults:
        raise Refused(
            f"version {found.version} of {name} has other stored bytes than were registered: {'; '.join(faults)};"
            " do not use it, promote another version"
        )


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    row = _row(record)
    perplexity = {
        domain: found["perplexity"] for domain, found in row.get("perplexity", {}).items()
    }
    return {
        "layers": len(record.get("kept", [])),
        **perplexity,
        "tasks": (row.get("task_mean") or {}).get("value"),
    }
