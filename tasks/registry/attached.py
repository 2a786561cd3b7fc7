"""The signed list of the files that a run attached to MLflow, in the run's tag ``attached``.

The report does not follow from the signed record alone: code of another day renders it in another way. So its digest is
signed, and with it those of the other files.
"""

from tasks.provenance.bundle import (
    ATTACHED,
    BadSignature,
    Statement,
    sign_statement,
    verify_bundle,
)
from tasks.provenance.keys import Signer
from tasks.provenance.trust import Trust
from tasks.store.manifest import fingerprint

TAG = "attached"


def sign_attached(run_id: str, files: dict[str, bytes], signer: Signer) -> str:
    """Return the tag of an MLflow run.

    Args:
        run_id: the flow's own id of the run.
        files: content of all files that are attached, by name.
        signer: of models.
    """
    subject = {name: fingerprint(data).sha256 for name, data in files.items()}
    return sign_statement(
        Statement(ATTACHED, subject, {"run_id": run_id}), signer
    ).decode()


def check_attached(tag: str | None, run_id: str, trust: Trust) -> dict[str, str]:
    """Return {name: sha256} of the files that were attached to a run.

    Args:
        tag: as the registry gives it; None where there is none.
        run_id: the flow's own id of the run.
        trust: whom to believe.

    Raises:
        BadSignature: it is missing, not by a trusted key, or of another run.
    """
    what = f"the list of files attached to run {run_id}"
    if tag is None:
        raise BadSignature(f"{what} is not signed")
    statement = verify_bundle(tag.encode(), trust, ATTACHED, what).statement
    own = statement.predicate.get("run_id")
    if own != run_id:
        raise BadSignature(f"{what} was signed for run {str(own)[:100]!r}")
    return statement.subject
