"""Signatures of model folders in the format of OpenSSF Model Signing: ``model.sig``, over every other file.

    python -m model_signing verify key FOLDER --signature FOLDER/model.sig --public_key keys/signing.pub.pem

checks one with nothing of this project. The key is an elliptic-curve key in a file, made on first use; or there is no
key, and Sigstore vouches for an identity (keyless).
"""

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elder import params
from elder.errors import UserError
from tasks.errors import plain_errors
from tasks.store.manifest import MANIFEST

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig
    from model_signing.signing import Config as SigningConfig

SIGNATURE = "model.sig"


def check_key(settings: params.Signing, root: Path) -> None:
    """Refuse settings with which nothing could be signed, before any work is done; the key is made where it lacks.

    Raises:
        UserError: the key cannot be read or made, or a keyless signature has nobody to vouch for.
    """
    if settings.keyless:
        _identity_token()
    elif settings.private_key is not None:
        _private_key(root / settings.private_key)


def sign(folder: Path, settings: params.Signing, root: Path) -> bool:
    """Sign a model folder; a signature that is there and holds is kept, since no two are alike.

    Args:
        folder: the model's; ``model.sig`` is written into it by rename.
        settings: the key, or keyless.
        root: folder that a relative path of the key starts from.

    Returns:
        Whether the folder is signed: not, where the settings name no key.
    """
    if not settings.keyless and settings.private_key is None:
        return False
    check_key(settings, root)
    with suppress(UserError):  # nobody knows whose signature is there
        if fault(folder, settings, public_key(settings, root)) is None:
            return True
    # on the same disk, and never among the signed files
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        new = Path(place) / SIGNATURE
        try:
            _signer(folder, settings, root).sign(folder, new)
        except UserError:
            raise
        except Exception as error:
            # Sigstore and its HTTP client each raise their own types
            if not settings.keyless:
                raise
            raise UserError(
                f"Sigstore gave no signature ({type(error).__name__}); run where it can be reached, with a token"
                " that has not expired, or set signing.keyless=false"
            ) from None
        os.replace(new, folder / SIGNATURE)
    return True


def _signer(folder: Path, settings: params.Signing, root: Path) -> "SigningConfig":
    """Return what signs a folder, with the key or with the identity."""
    from model_signing import signing

    config = signing.Config().set_hashing_config(_hashing(folder))
    if settings.private_key is None or settings.keyless:
        return config.use_sigstore_signer(identity_token=_identity_token())
    key = _private_key(root / settings.private_key)
    return config.use_elliptic_key_signer(private_key=key)


def fault(folder: Path, settings: params.Signing, key: Path | None) -> str | None:
    """Say what is wrong with the signature of a model folder, or None if it holds.

    Args:
        folder: all files of the model; the store's ``manifest.json`` may lie among them.
        settings: for a keyless signature, who must have signed.
        key: public key in PEM that must match; None for a keyless signature.

    Raises:
        UserError: the public key is missing or none, or it is not said who must have signed.
    """
    from model_signing import verifying

    if not (folder / SIGNATURE).is_file():
        return f"{SIGNATURE} is missing"
    config = verifying.Config().set_hashing_config(_hashing(folder))
    if key is None:
        if not (settings.identity and settings.issuer):
            raise UserError(
                "who must have signed is not said; set signing.identity and signing.issuer"
            )
        try:
            config.use_sigstore_verifier(
                identity=settings.identity, oidc_issuer=settings.issuer
            )
        except Exception as error:  # it asks for Sigstore's keys first
            raise UserError(
                f"Sigstore's keys cannot be had ({type(error).__name__}); audit where it can be reached"
            ) from None
    else:
        try:
            config.use_elliptic_key_verifier(public_key=key)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{str(key)!r} is no public key in PEM ({type(error).__name__}); name another"
            ) from None
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # a wrong key, another file, and a file that is no signature each raise their own type
        return f"{SIGNATURE} does not hold: {_reason(error)}"
    return None


def public_key(settings: params.Signing, root: Path) -> Path | None:
    """Return where the public key lies beside the private one; None where no key is used."""
    if settings.keyless or settings.private_key is None:
        return None
    return (root / settings.private_key).with_suffix(".pub.pem")


def _private_key(path: Path) -> Path:
    """Return the path of the private key, made where there is none; the public key is written beside it."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )

    with plain_errors(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            made = ec.generate_private_key(ec.SECP256R1())
            pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            _create(path, pem, 0o600)
        data = path.read_bytes()
    try:
        key: Any = load_pem_private_key(data, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(
            f"{str(path)!r} holds no elliptic-curve key in PEM without a password; set signing.private_key"
        )
    public = path.with_suffix(".pub.pem")
    text = key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    with plain_errors(public):
        if not public.exists():
            _create(public, text, 0o644)
        elif public.read_bytes().split() != text.split():
            raise UserError(
                f"{str(public)!r} does not belong to {path.name}; remove it, and it is written again"
            )
    return path


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that appears whole; where another process was faster, its file stays."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as handle:
        os.fchmod(handle.fileno(), mode)
        handle.write(data)
        handle.flush()
        try:
            os.link(handle.name, path)
        except FileExistsError:
            return


def _hashing(folder: Path) -> "HashingConfig":
    """Return how a folder is hashed: every file but the signature and the store's manifest, which knows both."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(
        paths=[folder / SIGNATURE, folder / MANIFEST], ignore_git_paths=False
    )


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


def _reason(error: Exception) -> str:
    """Return what the library says, without the digests, which it prints as raw bytes."""
    text = " ".join(str(error).split())
    said = [
        f"{name} is not what was signed"
        for name in re.findall(r"Hash mismatch for '([^']+)'", text)
    ]
    said += re.findall(r'"((?:Extra|Missing) files [^"]*)"', text)
    return "; ".join(said)[:500] or text[:300] or type(error).__name__
