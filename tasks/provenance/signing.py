"""Signatures of model folders in the format of OpenSSF Model Signing: ``model.sig``, over every other file.

    python -m model_signing verify key FOLDER --signature FOLDER/model.sig --public_key keys/signing.pub.pem

checks one with nothing of this project. The key is an elliptic-curve key in a file or behind a command; or there is no
key, and Sigstore vouches for an identity (keyless).
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from elder import params
from elder.errors import UserError
from elder.files import write_bytes
from tasks.provenance.bundle import (
    MODEL,
    STATEMENT_TYPE,
    BadSignature,
    Signed,
    sign_payload,
    verify_bundle,
)
from tasks.provenance.keys import signer_of
from tasks.provenance.trust import Role, Trust, trust_of
from tasks.store.manifest import MANIFEST, Files, describe

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig

SIGNATURE = "model.sig"
UNSIGNED = (SIGNATURE, MANIFEST)  # written after everything else
MOST_NAMED = 5  # files that a sentence lists


def check_key(settings: params.Signing, root: Path, role: Role = "model") -> None:
    """Refuse settings with which nothing could be signed, before any work is done.

    Raises:
        UserError: see `tasks.provenance.keys.signer_of`; or a keyless signature has nobody to vouch for.
    """
    if settings.keyless and role == "model":
        _identity_token()
    elif settings.command is None and settings.private_key is not None:
        signer_of(settings, root, role)


def sign(folder: Path, settings: params.Signing, root: Path) -> bool:
    """Sign a model folder; a signature that is there and holds is kept, since no two are alike.

    Args:
        folder: the model's; ``model.sig`` is written into it by rename.
        settings: the key, the command, or keyless.
        root: folder that a relative path of the key starts from.

    Returns:
        Whether the folder is signed: not, where the settings name nothing to sign with.
    """
    if settings.keyless:
        return _sign_keyless(folder, settings, root)
    if settings.command is None and settings.private_key is None:
        return False
    signer = signer_of(settings, root, "model")
    if not _is_signed(folder, trust_of(settings, root)):
        write_bytes(folder / SIGNATURE, sign_payload(_payload(folder), signer))
    return True


def check_files(signature: bytes | None, files: Files, trust: Trust) -> Signed:
    """Check a signature against the files that lie beside it.

    Args:
        signature: content of ``model.sig``; None where there is none.
        files: all files of the folder, as they are, or as a manifest says that they are.
        trust: whom to believe.

    Returns:
        The signature, which holds for every file but itself and the store's manifest.

    Raises:
        BadSignature: naming what is wrong.
    """
    if signature is None:
        raise BadSignature(f"{SIGNATURE} is missing")
    signed = verify_bundle(signature, trust, MODEL, SIGNATURE)
    wanted = _resources(signed)
    present = {
        path: file.sha256 for path, file in files.items() if path not in UNSIGNED
    }
    faults = []
    for path in sorted(wanted.keys() | present.keys()):
        if path not in present:
            faults.append(f"{path} was signed and is missing")
        elif path not in wanted:
            faults.append(f"{path} was not signed")
        elif wanted[path] != present[path]:
            faults.append(f"{path} is not what was signed")
    if faults:
        more = len(faults) - MOST_NAMED
        tail = f"; and {more} more" if more > 0 else ""
        raise BadSignature(
            f"{SIGNATURE} does not hold: {'; '.join(faults[:MOST_NAMED])}{tail}"
        )
    return signed


def _payload(folder: Path) -> bytes:
    """Return the in-toto statement on a folder's files as OpenSSF Model Signing has it."""
    manifest = _hashing(folder).hash(folder)
    resources, digests = [], hashlib.sha256()
    for one in manifest.resource_descriptors():
        digests.update(one.digest.digest_value)
        resources.append(
            {
                "name": one.identifier,
                "algorithm": one.digest.algorithm,
                "digest": one.digest.digest_hex,
            }
        )
    root_digest = {"sha256": digests.hexdigest()}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": manifest.model_name, "digest": root_digest}],
        "predicateType": MODEL,
        "predicate": {
            "serialization": manifest.serialization_type,
            "resources": resources,
        },
    }
    return json.dumps(statement).encode()


def _resources(signed: Signed) -> dict[str, str]:
    """Return {path: sha256} of the files that were signed."""
    try:
        resources = signed.statement.predicate["resources"]
        named = {str(one["name"]): str(one["digest"]) for one in resources}
        other = [one["name"] for one in resources if one["algorithm"] != "sha256"]
    except (KeyError, TypeError):
        raise BadSignature(
            f"{SIGNATURE} does not say which files were signed"
        ) from None
    if other or len(named) != len(resources):
        raise BadSignature(f"{SIGNATURE} does not give one sha256 for each file")
    return named


def _is_signed(folder: Path, trust: Trust) -> bool:
    with suppress(BadSignature, OSError):
        check_files((folder / SIGNATURE).read_bytes(), describe(folder), trust)
        return True
    return False


def _sign_keyless(folder: Path, settings: params.Signing, root: Path) -> bool:
    """Sign with this machine's identity, unless a signature that is there holds."""
    from model_signing import signing

    token = _identity_token()
    with suppress(UserError):  # Sigstore cannot be reached, or nobody knows whose it is
        if _is_signed(folder, trust_of(settings, root)):
            return True
    # on the same disk, and never among the signed files
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        new = Path(place) / SIGNATURE
        config = signing.Config().set_hashing_config(_hashing(folder))
        try:
            config.use_sigstore_signer(identity_token=token).sign(folder, new)
        except Exception as error:
            # Sigstore and its HTTP client each raise their own types
            raise UserError(
                f"Sigstore gave no signature ({type(error).__name__}); run where it can be reached, with a token"
                " that has not expired, or set signing.keyless=false"
            ) from None
        os.replace(new, folder / SIGNATURE)
    return True


def _hashing(folder: Path) -> "HashingConfig":
    """Return how a folder is hashed: every file but the signature and the store's manifest, which knows both."""
    from model_signing import hashing

    ignored = [folder / name for name in UNSIGNED]
    return hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)


def _identity_token() -> str:
    """Return the token of the identity that this machine runs under.

    Raises:
        UserError: if there is none.
    """
    from sigstore.oidc import IdentityError, detect_credential

    try:
        token = os.environ.get("SIGSTORE_ID_TOKEN") or detect_credential()
    except (IdentityError, OSError):
        token = None
    if not token:
        raise UserError(
            "a keyless signature needs an identity, and none is known here; run in a CI with OpenID Connect, set"
            " SIGSTORE_ID_TOKEN, or set signing.keyless=false"
        )
    return token
