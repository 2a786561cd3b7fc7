"""The signed registration of a version: that this number of this model is these bytes, of this run, since this time.

It stands in the version's tag ``registration``. Without it an older model, signed as well, could be registered again
under a new number, or a model of one name under another.
"""

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from elder.errors import UserError
from tasks.provenance.bundle import (
    REGISTRATION,
    BadSignature,
    Statement,
    sign_statement,
    verify_bundle,
)
from tasks.provenance.keys import Signer
from tasks.provenance.trust import Trust

TAG = "registration"


class Registration(BaseModel):
    """What is signed of a version.

    Attributes:
        name: registered model.
        version: its number.
        digest: of its files.
        run_id: of the run that made it.
        at: when it was registered, UTC, ISO 8601.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    version: str
    digest: str
    run_id: str
    at: str


def sign_registration(
    name: str, version: str, digest: str, run_id: str, signer: Signer
) -> str:
    """Return the tag of a version that is being registered now."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    predicate = {"name": name, "version": version, "run_id": run_id, "at": at}
    statement = Statement(REGISTRATION, {f"{name}/{version}": digest}, predicate)
    return sign_statement(statement, signer).decode()


def check_registration(
    tag: str | None, wanted: Registration, trust: Trust
) -> Registration:
    """Check the tag of a version.

    Args:
        tag: as the registry gives it; None where there is none.
        wanted: what it must say; its time is left open.
        trust: whom to believe.

    Raises:
        BadSignature: it is missing, not by a trusted key, or about something else.
    """
    what = f"the registration of version {wanted.version} of {wanted.name}"
    if tag is None:
        raise BadSignature(
            f"{what} is not signed, so that nothing tells it from an older model under a new number:"
            f" infra/restore.py {wanted.name} signs what it finds whole"
        )
    signed = verify_bundle(tag.encode(), trust, REGISTRATION, what)
    try:
        (digest,) = signed.statement.subject.values()
        told = Registration.model_validate(
            signed.statement.predicate | {"digest": digest}
        )
        at = datetime.fromisoformat(told.at)
    except (ValidationError, ValueError, UserError):
        raise BadSignature(
            f"{what} is signed and says nothing that can be read"
        ) from None
    if told.model_copy(update={"at": wanted.at}) != wanted:
        raise BadSignature(
            f"{what} was signed for version {told.version} of {told.name}, model {told.digest[:12]}... of run"
            f" {told.run_id}: it is another model"
        )
    late = signed.key.untimely(at) if signed.key else None
    if late:
        raise BadSignature(f"{what}: {late}")
    return told
