"""What an audit looks at beyond the files: whether name, number and champion are those that were signed for."""

from dataclasses import replace

from elder.errors import UserError
from tasks.audit.evidence import Broken, Check, Evidence
from tasks.registry.ledger import open_ledger
from tasks.registry.registration import TAG, Registration, check_registration
from tasks.registry.verified import name_of
from tasks.registry.versions import CHAMPION
from tasks.store.manifest import digest


def name(evidence: Evidence) -> str:
    """Compare the registered name with the place in the store, and with that which the run was started for."""
    names = {
        "the place in the store": evidence.source.split("/")[-2],
        "the signed record": name_of(evidence.record),
    }
    faults = []
    for where, own in names.items():
        if own != evidence.name:
            faults.append(f"by {where} it is a model of {own!r}")
    if faults:
        raise Broken(f"registered as {evidence.name!r}, but {'; '.join(faults)}")
    return f"place and record are those of a model of {evidence.name!r}"


def registration(evidence: Evidence) -> str:
    """Verify who signed that this name and number are these files, of this run."""
    wanted = Registration(
        name=evidence.name,
        version=evidence.version,
        digest=digest(evidence.files),
        run_id=str(evidence.run.data.tags.get("run_id")),
        at="",
    )
    try:
        told = check_registration(evidence.tags.get(TAG), wanted, evidence.trust)
    except UserError as error:
        raise Broken(str(error)) from None
    return f"signed as version {told.version} of {told.name!r} on {told.at}"


def history(evidence: Evidence) -> str:
    """Follow the history of decisions: each signed, none missing, and the registry tells what it says."""
    ledger = replace(
        open_ledger(evidence.settings, evidence.root, evidence.name),
        trust=evidence.trust,
    )
    told = ledger.history()
    faults = ledger.faults(told)
    if faults:
        raise Broken("; ".join(faults))
    holder = ledger.registry.holder(CHAMPION)
    number = holder[0] if holder else "none"
    if not told.entries:
        if holder:
            raise Broken(
                f"the registry calls version {number} champion, and no decision says so"
            )
        return "nobody has decided anything yet"
    last = told.entries[-1]
    if number != last.version:
        raise Broken(
            f"by the signed history champion is version {last.version}, the registry's alias is at version {number}"
        )
    return f"{len(told.entries)} signed decisions, the last by {last.by}: champion is version {number}"


TRUST_CHECKS: dict[str, Check] = {
    "registration": registration,
    "name": name,
    "history": history,
}
