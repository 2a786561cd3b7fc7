"""Look at a registered version again: recompute all of its record that can be recomputed, and say what does not hold.

The checks themselves are in ``tasks/audit_store.py`` (what lies in the store) and ``tasks/audit_record.py`` (what the
record says). Each returns a sentence, or raises ``Broken`` or ``Unknown``.
"""

import tempfile
from pathlib import Path
from typing import Any

from elder import params
from elder.errors import UserError
from tasks.audit.evidence import Broken, Check, Evidence, Unknown, gather
from tasks.audit.record import RECORD_CHECKS, measured_again
from tasks.audit.store import STORE_CHECKS
from tasks.errors import Unreachable


def audit(
    settings: params.Params,
    root: Path,
    name: str,
    public_key: Path | None = None,
    measure: bool = False,
) -> dict[str, Any]:
    """Audit one registered version.

    Args:
        settings: registry, store and signing key.
        root: the project's folder, where data, source model and commits are looked for.
        name: ``NAME@ALIAS`` or ``NAME/VERSION``.
        public_key: key that must have signed; None takes the one beside ``signing.private_key``.
        measure: measure perplexity again, too.

    Returns:
        ``name``, ``version``, ``source``, ``checks`` [{``name``, ``ok``, ``detail``}], and ``ok``: whether none of them
        failed. A check's ``ok`` is None where nothing could be said here.

    Raises:
        UserError: there is no such version, no such key, or registry or store cannot be read.
    """
    if public_key is not None and not public_key.is_file():
        raise UserError(f"there is no public key {str(public_key)!r}; name the PEM file of one")
    checks: dict[str, Check] = (
        STORE_CHECKS | RECORD_CHECKS | ({"perplexity": measured_again} if measure else {})
    )
    with tempfile.TemporaryDirectory(prefix="elder-audit-") as place:
        seen = gather(settings, root, name, public_key, Path(place))
        found = [_look(title, check, seen) for title, check in checks.items()]
    well = all(check["ok"] is not False for check in found)
    return {
        "name": seen.name,
        "version": seen.version,
        "source": seen.source,
        "ok": well,
        "checks": found,
    }


def _look(name: str, check: Check, seen: Evidence) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": check(seen)}
    except Unknown as error:
        return {"name": name, "ok": None, "detail": f"not checked here: {error}"}
    except Unreachable:
        raise
    except (Broken, UserError) as error:
        return {"name": name, "ok": False, "detail": str(error)}
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
    ) as error:  # an edited record may hold anything
        return {
            "name": name,
            "ok": False,
            "detail": f"the record cannot be read ({type(error).__name__}: {error})",
        }
