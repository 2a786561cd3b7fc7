"""Promote a registered version to champion, or roll back to the champion before it.

    plan = plan_promotion(settings, Path.cwd(), "my-model", "3")     # all checks; changes nothing
    entry = carry_out(settings, Path.cwd(), plan, who_acts(settings.registry), "better on our texts")

A plan names the number of the history entry that it wants to write. If somebody else decided in the meantime, that
number is taken and the plan is refused: nobody overwrites a decision that he has not seen. The entry is signed and
written first, the registry follows; whoever finds the registry behind, after a crash in between, moves it on.
"""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from elder import params
from elder.errors import UserError
from elder.evaluation.gate import beside_champion
from elder.record import Champion, Number, Record
from tasks.provenance.bundle import BadSignature
from tasks.provenance.identity import Identity
from tasks.provenance.keys import signer_of
from tasks.registry.champion import champion_of
from tasks.registry.connection import sqlite_file
from tasks.registry.history import Entry, History, append, champions
from tasks.registry.ledger import Disagreement, Ledger, open_ledger
from tasks.registry.verified import VerifiedVersion, stored_bytes_faults, verdict_fault
from tasks.registry.versions import (
    CHAMPION,
    Gone,
    is_told,
    last_told,
    same_model,
    write_history,
)
from tasks.store.manifest import PUBLISH_AGAIN

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
    before: str | None  # of the history's last entry, which this one follows
    # of all entries, where they are accepted as they lie
    earlier: dict[int, str] | None = None
    accepted: str | None = None  # what is wrong with them
    # by version: layers, perplexities and mean over tasks, as its record has them
    measured: dict[str, dict[str, Number | None]]


def plan_promotion(
    settings: params.Params,
    root: Path,
    name: str,
    version: str,
    force: bool = False,
    accept_history: bool = False,
) -> Plan:
    """Check all that a promotion needs: signatures, the gate's verdict, the comparison with the champion, the bytes.

    Args:
        settings: registry, store, whom to believe, and the gate's limit for the comparison.
        root: folder below which relative places lie.
        name: registered model.
        version: number of the version that should become champion.
        force: go on where the comparison says no, or cannot be made.
        accept_history: take the history as it lies, though it does not hold or the registry tells otherwise.

    Raises:
        Refused: a check said no.
        UserError: there is no such version, it is champion already by the history, or registry or store cannot be used.
    """
    ledger = _open(settings, root, name)
    signer_of(settings.signing, root, "decision")  # nothing is asked for in vain
    history, faults = _as_it_lies(ledger) if accept_history else (_settled(ledger), [])
    candidate = _passed(ledger, version)
    champion, compared = _beside_champion(
        settings.gate, ledger, candidate, force, faults
    )
    if champion and champion.version == version and history.entries and not faults:
        raise UserError(f"version {version} of {name} is the champion already")
    _check_bytes(name, candidate, settings.store)
    previous = champion if champion and champion.version != version else None
    return Plan(
        action="promote",
        name=name,
        number=_next_number(ledger, history, faults),
        version=version,
        previous=previous.version if previous else None,
        digest=candidate.digest,
        compared=compared,
        before=history.head,
        earlier=history.files if faults else None,
        accepted="; ".join(faults)[:LONGEST_REASON] or None,
        measured=_measured(ledger, candidate, previous),
    )


def plan_rollback(settings: params.Params, root: Path, name: str) -> Plan:
    """Find the champion before the present one, and check its signatures and stored bytes.

    Raises:
        Refused: they do not hold, or the history does not.
        UserError: there is none, its number means another model now, or registry or store cannot be used.
    """
    ledger = _open(settings, root, name)
    signer_of(settings.signing, root, "decision")
    history = _settled(ledger)
    stack = champions(history.entries)
    if len(stack) < 2:
        raise UserError(
            f"{name} has no champion to go back to: elder history {name} shows who was champion"
        )
    back = _verified(ledger, stack[-2])
    for entry in history.entries:
        if entry.version == back.version:
            same_model(ledger.registry, back.version, back.digest, entry.digest)
    _check_bytes(name, back, settings.store)
    return Plan(
        action="rollback",
        name=name,
        number=_next_number(ledger, history, []),
        version=back.version,
        previous=stack[-1],
        digest=back.digest,
        compared="A rollback compares nothing.",
        before=history.head,
        measured={},
    )


def carry_out(
    settings: params.Params,
    root: Path,
    plan: Plan,
    who: Identity,
    reason: str,
    comment: str | None = None,
) -> Entry:
    """Make a decision that was checked: first the signed entry in the history, then the registry.

    Args:
        settings: registry, store, and the key that decides.
        root: folder below which relative places lie.
        plan: what was checked.
        who: decides.
        reason: why.
        comment: what else was said, for which nobody vouches.

    Raises:
        Refused: somebody else decided since the plan was made.
        UserError: the reason is missing or too long, or registry or store cannot be used.
    """
    if not reason.strip() or len(reason) > LONGEST_REASON:
        raise UserError(
            f"a reason of {len(reason)} characters: say in 1 to {LONGEST_REASON} why, the history keeps it"
        )
    ledger = _open(settings, root, plan.name)
    signer = signer_of(settings.signing, root, "decision")
    told = plan.model_dump(exclude={"name", "measured"})
    entry = Entry(
        **told,
        by=who.name,
        vouched_by=who.vouched_by,
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        reason=reason.strip(),
        comment=comment,
    )
    if not append(ledger.decisions, plan.name, entry, signer):
        raise Refused(_who_was_faster(ledger, plan))
    try:
        log = settle(ledger, checked=True)
    except UserError as error:
        raise UserError(
            f"the decision stands in the history of {plan.name}, but the registry could not be told ({error}):"
            f" elder history {plan.name} tells it"
        ) from error
    return _as_read(log, plan)


def _as_read(log: list[Entry], plan: Plan) -> Entry:
    """Return a decision that was written, as readers find it."""
    for entry in log:
        if entry.number == plan.number:
            return entry
    raise UserError(
        f"the decision was written into the history of {plan.name}, but is not found there: look at the store, then at"
        f" elder history {plan.name}"
    )


def settle(ledger: Ledger, whole: bool = False, checked: bool = False) -> list[Entry]:
    """Move the registry on to what the history says, where it is behind, and return the history.

    After each change the history is read again: whoever tells an older decision at the same moment as somebody else a
    newer one must not have the last word.

    Args:
        ledger: of the model.
        whole: look at every tag, even where the last decision was told.
        checked: history and registry were found to agree a moment ago.

    Raises:
        Disagreement: the history does not hold, or the registry tells something that does not follow from it.
        Gone: the registry does not have the champion.
    """
    told: Entry | None = None
    # alone: of what was accepted with a decision, the registry may still tell otherwise
    log = ledger.agreed(alone=checked).entries
    while True:
        if not log:
            return log
        # that all tags but the last are there
        trusted = told == log[-1] if told else not whole
        if trusted and is_told(ledger.registry, log[-1]):
            return log
        write_history(ledger.registry, log)
        told = log[-1]
        log = ledger.agreed(alone=True).entries


def history_of(
    settings: params.Params, root: Path, name: str, whole: bool = False
) -> tuple[History, list[str]]:
    """Return all decisions on a model that can be believed, and what is wrong.

    The registry is moved on to the last of them where it is behind and nothing is wrong.
    """
    ledger = _open(settings, root, name)
    history, faults = ledger.look(alone=True)
    if faults:
        return history, faults
    try:
        settle(ledger, whole)
        return ledger.look(alone=True)
    except Disagreement:
        return history, ledger.faults(history)
    except UserError as error:  # the history can be read where the registry is lost
        return history, [
            f"the registry was not brought in line with the history: {error}"
        ]


def _settled(ledger: Ledger) -> History:
    """Settle and return the history; where the registry lost the champion, nothing is settled: another can follow.

    Raises:
        Refused: history and registry disagree.
    """
    try:
        with suppress(Gone):
            settle(ledger)
        return ledger.agreed(alone=True)
    except Disagreement as error:
        raise Refused(str(error)) from None


def _as_it_lies(ledger: Ledger) -> tuple[History, list[str]]:
    """Return a history that somebody wants to accept, and what is wrong: it must read the same each time.

    Raises:
        Refused: it does not.
    """
    before, (history, faults) = ledger.history(), ledger.look()
    if before.files != history.files:
        raise Refused(
            f"the history of {ledger.name} is not the same each time that it is read: look at the store, and try again"
        )
    return history, faults


def _open(settings: params.Params, root: Path, name: str) -> Ledger:
    uri = settings.registry.tracking_uri
    database = sqlite_file(uri)
    if database and not database.exists():
        raise UserError(
            f"there is no registry {uri} here: give this command in the project's folder, or set registry.tracking_uri"
        )
    return open_ledger(settings, root, name)


def _verified(ledger: Ledger, version: str) -> VerifiedVersion:
    try:
        candidate = ledger.version(version)
        _ = candidate.record.candidate  # there must be one to compare
    except BadSignature as error:
        raise Refused(f"{error}. It cannot be champion: promote another") from None
    return candidate


def _next_number(ledger: Ledger, history: History, faults: list[str]) -> int:
    """Return the next entry's number: beyond all that are there and, where those fail, that the registry tells."""
    last = max(history.files, default=0)
    return (max(last, last_told(ledger.registry)) if faults else last) + 1


def _who_was_faster(ledger: Ledger, plan: Plan) -> str:
    look = f"look at elder history {plan.name}, then decide again"
    for entry in ledger.history().entries:
        if entry.number == plan.number:
            return (
                f"{entry.by} was faster: {entry.action} to version {entry.version} of {plan.name} at {entry.at}"
                f" ({entry.reason}); {look}"
            )
    return f"somebody else was faster, and his decision cannot be read: {look}"


def _passed(ledger: Ledger, version: str) -> VerifiedVersion:
    """Return a version that was signed, and that the gate let pass by its own numbers."""
    candidate = _verified(ledger, version)
    fault = verdict_fault(candidate.record)
    if fault:
        raise Refused(f"version {version} of {ledger.name}: {fault}: promote another")
    return candidate


def _beside_champion(
    gate: params.Gate,
    ledger: Ledger,
    candidate: VerifiedVersion,
    force: bool,
    faults: list[str],
) -> tuple[Champion | None, str]:
    """Return the present champion, and what the gate's rule for it says, which the history keeps."""
    if faults:
        holder = ledger.registry.holder(CHAMPION)
        unproven = Champion(version=holder[0]) if holder else None
        return unproven, "Not compared with the champion: the history did not hold."
    champion = champion_of(ledger)
    if champion and champion.version == candidate.version:
        return champion, BEGINS
    row = candidate.record.candidate
    rule = beside_champion(gate.max_champion_ratio, row, champion)
    if rule is None:
        return (
            champion,
            "Not compared with the champion: gate.max_champion_ratio is null.",
        )
    if rule.passed:
        return champion, rule.reason
    if not force:
        raise Refused(
            f"version {candidate.version} of {ledger.name} was not promoted. {rule.reason} With --force it is promoted"
            " all the same."
        )
    return champion, f"Forced: {rule.reason}"


def _check_bytes(name: str, version: VerifiedVersion, settings: params.Store) -> None:
    faults = stored_bytes_faults(version, settings)
    if faults:
        raise Refused(
            f"version {version.version} of {name} has other stored bytes than were registered: {'; '.join(faults)};"
            f" do not use it, promote another version, or {PUBLISH_AGAIN}"
        )


def _measured(
    ledger: Ledger, candidate: VerifiedVersion, previous: Champion | None
) -> dict[str, dict[str, Number | None]]:
    """Return the numbers of a version and of the champion, where those can be believed."""
    measured = {candidate.version: _numbers(candidate.record)}
    if previous and previous.url and not previous.fault:
        record = ledger.version(previous.version).record
        measured[previous.version] = _numbers(record)
    return measured


def _numbers(record: Record) -> dict[str, Number | None]:
    """Return layers, perplexities and the mean over tasks of a record's candidate."""
    row = record.candidate
    numbers: dict[str, Number | None] = {"layers": len(record.kept)}
    for domain, measured in row.perplexity.items():
        numbers[domain] = measured.perplexity
    numbers["tasks"] = row.task_mean.value if row.task_mean else None
    return numbers
