"""Look at a registered version again: recompute all of its record that can be recomputed, and say what does not hold.

The checks are in ``store.py`` (what lies in the store), ``trust.py`` (name, number, champion), ``mlflow.py`` (what the
registry says of it), ``choice.py`` (which layers went) and ``record.py`` (the rest of the record). Each returns a
sentence, or raises ``Broken`` or ``Unknown``.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from elder import params
from elder.errors import UserError
from tasks.audit.choice import layer_weights
from tasks.audit.evidence import Broken, Check, Evidence, Unknown, gather
from tasks.audit.mlflow import MLFLOW_CHECKS
from tasks.audit.record import commit, data, gate, measured_again, source_model
from tasks.audit.store import CONTENT_CHECKS, STORE_CHECKS
from tasks.audit.trust import TRUST_CHECKS
from tasks.errors import Unreachable
from tasks.provenance.trust import trust_file, trust_of

# In the order in which they are told.
CHECKS: dict[str, Check] = {
    **STORE_CHECKS,
    **TRUST_CHECKS,
    **CONTENT_CHECKS,
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
    """What one check came to; ``ok`` is None where nothing could be said here, ``waived`` where a failure may be."""

    model_config = ConfigDict(frozen=True)
    name: str
    ok: bool | None
    detail: str
    waived: bool = False


class Audit(BaseModel):
    """All findings on a version.

    Attributes:
        name: registered model.
        version: its number.
        source: URL in the store.
        ok: no check failed, but for those that are waived.
        broken: names of the checks that failed.
        waived: of those that failed and may.
        unknown: of those that could not be made here.
        checks: all findings, in order.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    version: str
    source: str
    ok: bool
    broken: list[str]
    waived: list[str]
    unknown: list[str]
    checks: list[Finding]


def audit(
    settings: params.Params,
    root: Path,
    name: str,
    public_key: Path | None = None,
    measure: bool = False,
    waive: Collection[str] = (),
) -> Audit:
    """Audit one registered version.

    Args:
        settings: registry, store, and whom to believe.
        root: the project's folder, where data, source model and commits are looked for.
        name: ``NAME@ALIAS`` or ``NAME/VERSION``.
        public_key: key that must have signed; None: one of those that ``signing.trusted`` names.
        measure: measure perplexity again, too.
        waive: names of checks that may fail.

    Raises:
        UserError: there is no such version, key or check, or registry or store cannot be read.
    """
    checks = CHECKS | MEASURE if measure else CHECKS
    waived = waivers(waive)
    trust = trust_file(public_key) if public_key else trust_of(settings.signing, root)
    with tempfile.TemporaryDirectory(prefix="elder-audit-") as place:
        evidence = gather(settings, root, name, trust, Path(place), waived)
        findings = [examine(title, check, evidence) for title, check in checks.items()]
    failed = [one for one in findings if one.ok is False]
    broken = [one.name for one in failed if not one.waived]
    return Audit(
        name=evidence.name,
        version=evidence.version,
        source=evidence.source,
        ok=not broken,
        broken=broken,
        waived=[one.name for one in failed if one.waived],
        unknown=[one.name for one in findings if one.ok is None],
        checks=findings,
    )


def waivers(names: Collection[str]) -> frozenset[str]:
    """Return the names of checks that may fail.

    Raises:
        UserError: there is no such check.
    """
    for name in names:
        if name not in CHECKS | MEASURE:
            raise UserError(
                f"--waive {name!r}: there is no such check; there are {', '.join(CHECKS | MEASURE)}"
            )
    return frozenset(names)


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
        fault = str(error)
    except UNREADABLE as error:
        fault = f"the record cannot be read ({type(error).__name__}: {error})"
    waived = name in evidence.waived
    return Finding(name=name, ok=False, detail=fault, waived=waived)
