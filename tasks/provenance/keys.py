"""What this machine signs with: a private key in a file, or another process that holds one.

A key is made once, on a machine where nobody is trusted yet, and that is announced; a key that is missing later is
never replaced in silence. ``elder keys --new`` makes another on purpose.
"""

import base64
import json
import os
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from elder import params
from elder.errors import UserError
from elder.progress import say
from tasks.errors import plain_errors
from tasks.provenance.identity import operating_system_user
from tasks.provenance.trust import (
    ROLES,
    Role,
    Trust,
    TrustedKey,
    add_key,
    load_public,
    trust_of,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

LONGEST_WAIT = 60  # seconds for another process to sign
PUBLIC_SUFFIX = ".pub.pem"


class Signer(Protocol):
    """Something that signs bytes: ECDSA over the hash that goes with the curve."""

    def sign(self, data: bytes) -> tuple[bytes, str]:
        """Return the signature in DER, and the public key as in `TrustedKey`."""


@dataclass(frozen=True)
class FileSigner:
    """Signs with a private key of this process."""

    key: "EllipticCurvePrivateKey"

    def sign(self, data: bytes) -> tuple[bytes, str]:
        """See `Signer`."""
        from cryptography.hazmat.primitives.asymmetric import ec

        public = public_text(self.key)
        return self.key.sign(data, ec.ECDSA(hash_for(public))), public


@dataclass(frozen=True)
class CommandSigner:
    """Has another process sign, which may belong to another user or host: `tasks.provenance.signer` is one.

    Attributes:
        command: it reads the bytes from its standard input, and writes ``{"signature": BASE64, "public_key": BASE64}``.
    """

    command: str

    def sign(self, data: bytes) -> tuple[bytes, str]:
        """See `Signer`.

        Raises:
            UserError: it refuses, or its answer is no signature.
        """
        try:
            done = subprocess.run(
                shlex.split(self.command),
                input=data,
                capture_output=True,
                timeout=LONGEST_WAIT,
                check=False,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise UserError(
                f"signing.command cannot be run ({type(error).__name__}): name a program that signs"
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            why = said[-1][:300] if said else "without a word"
            raise UserError(
                f"signing.command refused to sign, status {done.returncode}: {why}"
            )
        try:
            answer = json.loads(done.stdout)
            return base64.b64decode(answer["signature"]), str(answer["public_key"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                "signing.command did not answer with a signature and a public key, see docs/auditing.md"
            ) from None


def signer_of(settings: params.Signing, root: Path, role: Role) -> Signer:
    """Return what signs here, after checks that what it signs will be believed.

    Args:
        settings: the key or the command, and whom to believe.
        root: folder that relative paths start from.
        role: what is going to be signed.

    Raises:
        UserError: there is no key, it may be read by others, or it is not trusted with this.
    """
    if settings.command is not None:
        return CommandSigner(settings.command)
    if settings.private_key is None:
        raise UserError(
            "signing.private_key is null, so nothing can be signed: name a key, or a signing.command"
        )
    path = root / settings.private_key
    trust, since = trust_of(settings, root), None
    if not path.exists():
        refuse_lost(path, trust)
        if role != "model":
            raise UserError(
                f"nobody is trusted here, and there is no private key {str(path)!r} to decide with: bring"
                f" {settings.trusted!r} from the project's repository, and your key"
            )
        with plain_errors(path):
            _make(path)
        since = _today()
    key = read_private(path)
    if trust.nobody:
        _announce(path, trust_own_key(settings, root, ROLES, since), settings.trusted)
    else:
        _refuse_untrusted(path, public_text(key), trust, role)
    _write_public(path, key)
    return FileSigner(key)


def _refuse_untrusted(path: Path, public: str, trust: Trust, role: Role) -> None:
    """Refuse a key with which nothing could be signed that counts."""
    own = [key for key in trust.keys if key.public_key == public and role in key.roles]
    if not own:
        raise UserError(
            f"{str(path)!r} is not trusted with {_signs(role)} by {trust.place!r}: use a key that is, or add this one"
            " with `elder keys --add` and commit that file"
        )
    reasons = [key.untimely(datetime.now(UTC)) for key in own]
    if all(reasons):
        raise UserError(
            f"{str(path)!r} signs nothing that counts today: {reasons[0]}; make another with `elder keys --new`, or"
            f" change the dates in {trust.place!r}"
        )


def signer_if_any(settings: params.Signing, root: Path) -> Signer | None:
    """Return what signs registrations here; None where nothing is named, or models are signed without a key."""
    if settings.command is None:
        path = root / settings.private_key if settings.private_key else None
        if path is None or (settings.keyless and not path.exists()):
            return None
    return signer_of(settings, root, "model")


def refuse_lost(path: Path, trust: Trust) -> None:
    """Refuse a missing key where others are trusted already: another one would be believed by nobody.

    Raises:
        UserError: if so.
    """
    if not trust.nobody:
        raise UserError(
            f"there is no private key {str(path)!r}, though {trust.place!r} says whom to believe: bring it back, or"
            " make another on purpose with `elder keys --new` and commit that file"
        )


def new_key(
    settings: params.Signing,
    root: Path,
    roles: Sequence[Role],
    name: str | None = None,
) -> TrustedKey:
    """Make another private key in place of the present one, which is kept beside it, and trust it from today.

    See `trust_own_key` for the arguments.

    Raises:
        UserError: no key is used here, or the files cannot be written.
    """
    path = _key_path(settings, root)
    with plain_errors(path):
        if path.exists():
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            path.rename(path.with_name(f"{path.stem}-until-{stamp}{path.suffix}"))
            path.with_suffix(PUBLIC_SUFFIX).unlink(missing_ok=True)
        _make(path)
    return trust_own_key(settings, root, roles, _today(), name)


def trust_own_key(
    settings: params.Signing,
    root: Path,
    roles: Sequence[Role],
    since: date | None = None,
    name: str | None = None,
) -> TrustedKey:
    """Add the present private key's public half to the trusted ones.

    Args:
        settings: the key, and the file of those that are trusted.
        root: folder that relative paths start from.
        roles: what it may sign.
        since: first day on which what it signs counts; None: whatever it ever signed does.
        name: whose it is; None: the user of this process.

    Raises:
        UserError: there is no key, or it is trusted already.
    """
    path = _key_path(settings, root)
    key = read_private(path)
    public = public_text(key)
    if any(one.public_key == public for one in trust_of(settings, root).keys):
        raise UserError(
            f"{str(path)!r} stands in {settings.trusted!r} already: edit its roles and dates there"
        )
    name = name or f"{operating_system_user()} {_today()}"
    trusted = TrustedKey(name=name, public_key=public, roles=tuple(roles), since=since)
    add_key(settings, root, trusted)
    _write_public(path, key)
    return trusted


def read_private(path: Path) -> "EllipticCurvePrivateKey":
    """Return the private key in a file.

    Raises:
        UserError: there is none, others may read it, or it is of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with plain_errors(path):
        if not path.exists():
            raise UserError(
                f"there is no private key {str(path)!r}: set signing.private_key"
            )
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    if mode & 0o077:
        raise UserError(
            f"others than its owner may use the private key {str(path)!r} (mode {mode:04o}): chmod 600 it, and think"
            " about a new one: elder keys --new"
        )
    try:
        key: Any = load_pem_private_key(data, None)
        load_public(public_text(key))
    except (ValueError, TypeError, AttributeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(
            f"{str(path)!r} holds no elliptic-curve key in PEM without a password; set signing.private_key"
        )
    return key


def public_text(key: "EllipticCurvePrivateKey") -> str:
    """Return a private key's public half as in `TrustedKey`."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def hash_for(public_key: str) -> "HashAlgorithm":
    """Return the hash that OpenSSF Model Signing uses with a curve."""
    from cryptography.hazmat.primitives import hashes

    size = load_public(public_key).curve.key_size
    return {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[size]


def _key_path(settings: params.Signing, root: Path) -> Path:
    if settings.private_key is None:
        raise UserError("signing.private_key is null: name the file of a key first")
    return root / settings.private_key


def _make(path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    path.parent.mkdir(parents=True, exist_ok=True)
    made = ec.generate_private_key(ec.SECP256R1())
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _create(path, pem, 0o600)


def _announce(path: Path, trusted: TrustedKey, place: str) -> None:
    """Say that the first key of a project is trusted from now on."""
    say(
        f"nobody was trusted yet: what {path} signs is believed from now on (key {trusted.fingerprint[:16]}...). Commit"
        f" {place}, so that others believe it too, and keep a copy of the key."
    )


def _today() -> date:
    return datetime.now(UTC).date()


def _write_public(path: Path, key: "EllipticCurvePrivateKey") -> None:
    """Write the public half beside a private key, in PEM, for upstream's tools."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = path.with_suffix(PUBLIC_SUFFIX)
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


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that appears whole; where another process was faster, its file stays."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as handle:
        os.fchmod(handle.fileno(), mode)
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
        try:
            os.link(handle.name, path)
        except FileExistsError:
            return


def _signs(role: Role) -> str:
    return {"model": "models", "decision": "decisions on models"}[role]
