"""Whom to believe: the public keys that may sign models and decisions, in a file that is committed with the project.

    # keys/trusted.yaml
    - name: nightly
      public_key: MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE...
      roles: [model]
      since: 2026-11-26
      until: 2027-11-26

Whoever may change this file decides whom everybody believes; nothing that lies in a store or a registry does.
"""

import base64
import hashlib
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from elder import params
from elder.errors import UserError
from elder.files import write_text
from elder.params.strict_yaml import read_yaml

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

# what a key may sign: models and the registration of their versions; who is champion
Role = Literal["model", "decision"]
ROLES: tuple[Role, ...] = ("model", "decision")
CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those of Sigstore's bundles
HEAD = """# Whom this project believes: public keys, and what each may sign. Commit this file: models and decisions
# count only if a key that stands here has signed them. A key that was stolen is taken out.
"""


class TrustedKey(BaseModel):
    """A public key that is believed.

    Attributes:
        name: whose it is, for people.
        public_key: an elliptic-curve key, base64 of its DER SubjectPublicKeyInfo: PEM without head, tail and breaks.
        roles: what it may sign.
        since: first day on which what it signs counts; None: always.
        until: last day; None: for ever. A signature says itself when it was made, so this ends the use of a key that
            its owner keeps, not of one that was stolen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1, max_length=100)
    public_key: str
    roles: tuple[Role, ...] = Field(min_length=1)
    since: date | None = None
    until: date | None = None

    @field_validator("public_key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        text = "".join(text.split())
        load_public(text)
        return text

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the key, in hexadecimal."""
        return hashlib.sha256(base64.b64decode(self.public_key)).hexdigest()

    def untimely(self, at: datetime) -> str | None:
        """Say why a signature made at a time does not count, or None if it does."""
        day = at.astimezone(UTC).date()
        if self.since and day < self.since:
            return (
                f"the key {self.name!r} counts since {self.since}, it signed on {day}"
            )
        if self.until and day > self.until:
            return (
                f"the key {self.name!r} counted until {self.until}, it signed on {day}"
            )
        return None


class Trust(BaseModel):
    """All keys that are believed, and for keyless signatures the identity.

    Attributes:
        keys: as in the file.
        place: the file, for sentences.
        identity: who may sign models and registrations through Sigstore; None: nobody.
        issuer: who vouches for that.
    """

    model_config = ConfigDict(frozen=True)
    keys: tuple[TrustedKey, ...]
    place: str
    identity: str | None = None
    issuer: str | None = None

    @property
    def nobody(self) -> bool:
        """Say whether nothing is believed at all."""
        return not self.keys and not self.identity

    @cached_property
    def by_hint(self) -> dict[str, TrustedKey]:
        """Return the keys by what a signature says of its key: the sha256 of its PEM."""
        return {hint_of(key.public_key): key for key in self.keys}


def trust_of(settings: params.Signing, root: Path) -> Trust:
    """Read whom the parameters say to believe; nobody, where the file is not there.

    Raises:
        UserError: if the file cannot be read.
    """
    path = root / settings.trusted
    keys = _read_keys(path) if path.exists() else ()
    issuer = settings.issuer if settings.identity else None
    return Trust(
        keys=keys, place=settings.trusted, identity=settings.identity, issuer=issuer
    )


def trust_file(path: Path) -> Trust:
    """Return that the one key in a PEM file is believed, for everything.

    Raises:
        UserError: it holds no such key.
    """
    try:
        lines = path.read_text(encoding="ascii").strip().splitlines()
        key = TrustedKey(name=path.name, public_key="".join(lines[1:-1]), roles=ROLES)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is no public key in PEM ({type(error).__name__}); name another"
        ) from None
    return Trust(keys=(key,), place=str(path))


def add_key(settings: params.Signing, root: Path, key: TrustedKey) -> None:
    """Add a key to the file of those that are believed; the file is made where it is missing."""
    keys = [*trust_of(settings, root).keys, key]
    listed = [one.model_dump(mode="json", exclude_none=True) for one in keys]
    body = yaml.safe_dump(listed, sort_keys=False, width=200)
    write_text(root / settings.trusted, HEAD + body)


def load_public(text: str) -> "EllipticCurvePublicKey":
    """Return the key that a base64 text stands for.

    Raises:
        ValueError: it is none that a model can be signed with.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        key = load_der_public_key(base64.b64decode(text, validate=True))
    except (ValueError, TypeError):
        raise ValueError("no public key: give the base64 lines of its PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ValueError(f"no elliptic-curve key of {', '.join(CURVES)}")
    return key


def hint_of(public_key: str) -> str:
    """Return by what OpenSSF Model Signing names a key: the sha256 of its PEM."""
    lines = [public_key[start : start + 64] for start in range(0, len(public_key), 64)]
    pem = "\n".join(
        ["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""]
    )
    return hashlib.sha256(pem.encode()).hexdigest()


def _read_keys(path: Path) -> tuple[TrustedKey, ...]:
    tree = read_yaml(path, "list of trusted keys", "name one with signing.trusted")
    if tree is not None and not isinstance(tree, list):
        raise UserError(
            f"{str(path)!r} must be a list of keys, as `elder keys` writes it"
        )
    keys = []
    for number, entry in enumerate(tree or [], start=1):
        try:
            keys.append(TrustedKey.model_validate(entry))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(
                f"{str(path)!r}, key {number}: {where or 'the entry'}: {first['msg']}"
            ) from None
    return tuple(keys)
