"""Look at a registered version again: recompute all of its record that can be recomputed, and say what does not hold.

The checks are in ``store.py`` (what lies in the store), ``mlflow.py`` (what the registry says of it), ``choice.py``
(which layers went) and ``record.py`` (the rest of the record). Each returns a sentence, or raises ``Broken`` or
``Unknown``.
"""

import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from elder import params
from elder.errors import UserError
from tasks.audit.choice import layer_weights
from tasks.audit.evidence import Broken, Check, Evidence, Unknown, gather
from tasks.audit.mlflow import MLFLOW_CHECKS
from tasks.audit.record import commit, data, gate, measured_again, source_model
from tasks.audit.store import STORE_CHECKS
from tasks.errors import Unreachable
from tasks.provenance.trust import trust_file, trust_of

# In the order in which they are told.
CHECKS: dict[str, Check] = {
    **STORE_CHECKS,
    **MLFLOW_CHECKS,
    "gate": gate,
    "layer weights": layer_weights,
    "source model": source_model,
    "data": data,
    "commit": commit,
}
MEASURE: dict[str, Check] = {"perplexity": measured_again}
# What a value of a free part of the record, such as the parameters, may lead to where somebody edited it.
UNREADABLE = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
)


class Finding(BaseModel):
    """What one check came to; ``ok`` is None where nothing could be said here."""

    model_config = ConfigDict(frozen=True)
    name: str
    ok: bool | None
    detail: str


class Audit(BaseModel):
    """All findings on a version; ``ok``: none of them failed."""

    model_config = ConfigDict(frozen=True)
    name: str
    version: str
    source: str
    ok: bool
    checks: list[Finding]

    @property
    def broken(self) -> list[str]:
        """Return the names of the checks that failed."""
        return [finding.name for finding in self.checks if finding.ok is False]


def audit(
    settings: params.Params,
    root: Path,
    name: str,
    public_key: Path | None = None,
    measure: bool = False,
) -> Audit:
    """Audit one registered version.

    Args:
        settings: registry, store and signing key.
        root: the project's folder, where data, source model and commits are looked for.
        name: ``NAME@ALIAS`` or ``NAME/VERSION``.
        public_key: key that must have signed; None: one of those that ``signing.trusted`` names.
        measure: measure perplexity again, too.

    Raises:
        UserError: there is no such version, no such key, or registry or store cannot be read.
    """
    trust = trust_file(public_key) if public_key else trust_of(settings.signing, root)
    checks = CHECKS | MEASURE if measure else CHECKS
    with tempfile.TemporaryDirectory(prefix="elder-audit-") as place:
        evidence = gather(settings, root, name, trust, Path(place))
        findings = [examine(title, check, evidence) for title, check in checks.items()]
    return Audit(
        name=evidence.name,
        version=evidence.version,
        source=evidence.source,
        ok=all(finding.ok is not False for finding in findings),
        checks=findings,
    )


def examine(name: str, check: Check, evidence: Evidence) -> Finding:
    """Return what a check comes to.

    Raises:
        Unreachable: registry or store do not answer, so that nothing can be said.
    """
    try:
        return Finding(name=name, ok=True, detail=check(evidence))
    except Unknown as error:
        return Finding(name=name, ok=None, detail=f"not checked here: {error}")
    except Unreachable:
        raise
    except (Broken, UserError) as error:
        return Finding(name=name, ok=False, detail=str(error))
    except UNREADABLE as error:
        fault = f"the record cannot be read ({type(error).__name__}: {error})"
        return Finding(name=name, ok=False, detail=fault)
