"""A registered version that can be believed: signed bytes, under this name and number, judged by its own numbers.

What the registry says of a version (its place, digest, tags) only leads there; nothing of it is taken on trust.
"""

import re
from dataclasses import dataclass
from datetime import datetime

from elder import params
from elder.errors import UserError
from elder.evaluation.gate import differences, judge_again
from elder.files import parse_json
from elder.record import Record, read_record
from tasks.provenance.bom import RECORD
from tasks.provenance.bundle import BadSignature, Signed
from tasks.provenance.signing import SIGNATURE, check_files
from tasks.provenance.trust import Trust
from tasks.registry.client import Reference, Registry
from tasks.registry.registration import TAG, Registration, check_registration
from tasks.store.base import Store
from tasks.store.manifest import digest, fingerprint
from tasks.store.open import open_model


@dataclass(frozen=True)
class VerifiedVersion:
    """A version whose signatures hold.

    Attributes:
        version: its number.
        url: where its files lie.
        digest: of them.
        record: that was signed with them.
        signed_by: whose key did.
    """

    version: str
    url: str
    digest: str
    record: Record
    signed_by: str


def verify_version(
    registry: Registry, settings: params.Store, trust: Trust, version: str
) -> VerifiedVersion:
    """Look a version of the registered model up, and verify who signed it, and that it is what its number stands for.

    Its bytes are those that were signed as far as the manifest says so: `stored_bytes_faults` reads them.

    Args:
        registry: of the model.
        settings: endpoint and region of its store.
        trust: whom to believe.
        version: its number.

    Raises:
        BadSignature: who should have signed did not.
        UserError: there is no such version, or its files cannot be read.
    """
    if not re.fullmatch(r"[1-9]\d{0,9}", version):
        raise UserError(f"version {version!r}: name a number, such as 3")
    entry = registry.look_up(Reference(registry.name, None, version))
    url, name = str(entry.source).rstrip("/"), registry.name
    title = f"version {version} of {name}"
    if not re.fullmatch(rf".+/models/{re.escape(name)}/[0-9a-f]{{64}}", url):
        raise BadSignature(f"{title} points to a place where no model of {name} lies")
    store, prefix = open_model(url, settings.endpoint, settings.region)
    try:
        record, signed, files_digest = signed_record(store, prefix, trust)
    except BadSignature as error:
        raise BadSignature(f"{title}: {error}") from None
    own_name = name_of(record)
    if own_name != name:
        raise BadSignature(f"{title} was made and signed as a model of {own_name!r}")
    wanted = Registration(
        name=name, version=version, digest=files_digest, run_id=record.run_id, at=""
    )
    check_registration(entry.tags.get(TAG), wanted, trust)
    return VerifiedVersion(version, url, files_digest, record, signed.by)


def signed_record(
    store: Store, prefix: str, trust: Trust
) -> tuple[Record, Signed, str]:
    """Return the record of a published model, who signed it, and the digest of the model's files.

    Nothing but manifest and signature is parsed before the signature was found to hold.

    Raises:
        BadSignature: it does not.
        UserError: there is no whole model, or its record cannot be read.
    """
    files = store.manifest(prefix)
    signed = check_files(store.read(_inside(prefix, SIGNATURE)), files, trust)
    data = store.read(_inside(prefix, RECORD))
    if data is None or RECORD not in files:
        raise UserError(f"there is no {RECORD} beside its weights")
    if fingerprint(data) != files[RECORD]:
        raise UserError(f"its {RECORD} is not what the manifest says")
    what = f"its {RECORD}"
    record = read_record(parse_json(data, what), what)
    try:
        made = datetime.fromisoformat(record.created)
        late = signed.key.untimely(made) if signed.key else None
    except (TypeError, ValueError):
        late = "its record does not say when it was made"
    if late:
        raise BadSignature(late)
    return record, signed, digest(files)


def verdict_fault(record: Record) -> str | None:
    """Say why the gate did not let a signed record pass, by its own numbers judged again; None if it did."""
    try:
        judged = judge_again(record)
    except UserError as error:
        return str(error)
    differing = differences(record.gate, judged)
    if differing:
        return f"its verdict does not follow from its numbers: {'; '.join(differing)}"
    if judged.mode == "off":
        return "its gate was off"
    failed = [rule.rule for rule in judged.rules if not rule.passed]
    return None if judged.passed else f"it did not pass the gate: {', '.join(failed)}"


def stored_bytes_faults(version: VerifiedVersion, settings: params.Store) -> list[str]:
    """Read all bytes of a version again, and say what is not as the signed manifest says."""
    store, prefix = open_model(version.url, settings.endpoint, settings.region)
    return store.verify(prefix)


def name_of(record: Record) -> str | None:
    """Return the registered model that a run was made for, as its signed record says."""
    registry = record.lineage.params.get("registry")
    name = registry.get("name") if isinstance(registry, dict) else None
    return name if isinstance(name, str) else None


def _inside(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name
