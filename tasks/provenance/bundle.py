"""Signed statements: an in-toto statement in a Sigstore bundle, the form that OpenSSF Model Signing gives a model.sig.

One form for all that is signed: a model's files, the registration of a version, a decision. Any tool that reads
Sigstore bundles reads them; the payload is base64 of plain JSON.
"""

import base64
import json
from dataclasses import dataclass
from typing import Any

from elder.errors import UserError
from elder.files import parse_json
from elder.record import Json
from tasks.provenance.keys import Signer, hash_for
from tasks.provenance.trust import Role, Trust, TrustedKey, hint_of, load_public

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MODEL = "https://model_signing/signature/v1.0"
REGISTRATION = "urn:elder:registration:1"
ATTACHED = "urn:elder:attached:1"
DECISION = "urn:elder:decision:1"
# what a key must be trusted with to sign a kind of statement
ROLE_OF: dict[str, Role] = {
    MODEL: "model",
    REGISTRATION: "model",
    ATTACHED: "model",
    DECISION: "decision",
}
LARGEST = 64 << 20  # bytes of a bundle: that of a model with a hundred thousand files


class BadSignature(UserError):
    """A signature does not hold; nothing of what it covers may be believed, or even parsed."""


@dataclass(frozen=True)
class Statement:
    """What somebody signed.

    Attributes:
        kind: the predicate's type, such as `DECISION`.
        subject: {name: sha256 in hexadecimal} of what it is about.
        predicate: what it says of that.
    """

    kind: str
    subject: dict[str, str]
    predicate: dict[str, Json]


@dataclass(frozen=True)
class Signed:
    """A statement whose signature holds.

    Attributes:
        statement: what was signed.
        key: by which key; None for an identity that Sigstore vouches for.
        by: whose that is, for people.
    """

    statement: Statement
    key: TrustedKey | None
    by: str


def sign_statement(statement: Statement, signer: Signer) -> bytes:
    """Return a statement in a signed bundle, as JSON."""
    subject = [
        {"name": name, "digest": {"sha256": sha256}}
        for name, sha256 in statement.subject.items()
    ]
    payload = {
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": statement.kind,
        "predicate": statement.predicate,
    }
    return sign_payload(json.dumps(payload, sort_keys=True).encode(), signer)


def sign_payload(payload: bytes, signer: Signer) -> bytes:
    """Return an in-toto statement, given as JSON, in a signed bundle."""
    signature, public_key = signer.sign(pae(payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
    }
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": hint_of(public_key)},
            "tlogEntries": [],
        },
        "dsseEnvelope": envelope,
    }
    return (json.dumps(bundle, indent=1) + "\n").encode()


def verify_bundle(data: bytes, trust: Trust, kind: str, what: str) -> Signed:
    """Return the statement in a bundle whose signature holds; nothing of it is parsed before.

    Args:
        data: the bundle, from wherever.
        trust: whom to believe. Whether the key's dates allow it is asked of `TrustedKey.untimely`, by whoever knows
            when the statement was made.
        kind: what the statement must be.
        what: how sentences call it.

    Raises:
        BadSignature: it is no bundle, nobody who is trusted with this kind has signed it, or it is of another kind.
    """
    if len(data) > LARGEST:
        raise BadSignature(f"{what} has {len(data)} bytes, no signature has")
    try:
        bundle = parse_json(data, what)
        material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        hint = (material.get("publicKey") or {}).get("hint")
        keyless = "certificate" in material or "x509CertificateChain" in material
        payload_type = envelope["payloadType"]
    except (UserError, KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise BadSignature(f"{what} is no signature in a Sigstore bundle") from None
    key: TrustedKey | None = None
    if keyless:
        by, payload = _by_identity(data, trust, kind, what)
    else:
        key = _key_of(hint, trust, ROLE_OF[kind], what)
        by = key.name
        if payload_type != PAYLOAD_TYPE or not holds(key, signature, payload):
            raise BadSignature(
                f"{what} does not hold: it is not what the key {by!r} has signed"
            )
    statement = _statement(payload, what)
    if statement.kind != kind:
        raise BadSignature(
            f"{what} is a signature of another kind, {statement.kind!r} in place of {kind!r}"
        )
    return Signed(statement, key, by)


def covered_statement(data: bytes, what: str) -> Statement:
    """Return the statement in a bundle whose bytes something else vouches for, such as a digest that was signed.

    Raises:
        BadSignature: it is no bundle.
    """
    try:
        bundle = parse_json(data, what)
        payload = base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True)
    except (UserError, KeyError, TypeError, ValueError):  # text beyond ASCII, too
        raise BadSignature(f"{what} is no signature in a Sigstore bundle") from None
    return _statement(payload, what)


def pae(payload: bytes) -> bytes:
    """Return the bytes that are signed for a payload (DSSE v1, pre-authentication encoding)."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def holds(key: TrustedKey, signature: bytes, payload: bytes) -> bool:
    """Say whether a key has signed a payload."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    algorithm = ec.ECDSA(hash_for(key.public_key))
    try:
        load_public(key.public_key).verify(signature, pae(payload), algorithm)
    except InvalidSignature:
        return False
    return True


def _key_of(hint: Any, trust: Trust, role: Role, what: str) -> TrustedKey:
    """Return the key that a bundle says it was signed with, if it is trusted with this."""
    if trust.nobody:
        raise BadSignature(
            f"{what} cannot be believed: nobody is trusted here; bring {trust.place!r} from the project's repository,"
            " or name a key with --public-key"
        )
    key = trust.by_hint.get(hint) if isinstance(hint, str) else None
    if key is None:
        told = f"{hint[:16]}..." if isinstance(hint, str) else "none"
        raise BadSignature(
            f"{what} is by a key that {trust.place!r} does not name ({told})"
        )
    if role not in key.roles:
        raise BadSignature(
            f"{what} is by the key {key.name!r}, which {trust.place!r} does not trust with this: role {role!r}"
        )
    return key


def _by_identity(data: bytes, trust: Trust, kind: str, what: str) -> tuple[str, bytes]:
    """Return the identity that Sigstore vouches for, and what it signed."""
    if ROLE_OF[kind] != "model" or not (trust.identity and trust.issuer):
        raise BadSignature(
            f"{what} is by an identity, and none is trusted with it: set signing.identity and signing.issuer"
        )
    from sigstore.errors import Error as SigstoreError
    from sigstore.models import Bundle
    from sigstore.verify import Verifier, policy

    try:
        verifier = Verifier.production()
    except Exception as error:  # it asks for Sigstore's keys first
        raise UserError(
            f"Sigstore's keys cannot be had ({type(error).__name__}); audit where it can be reached"
        ) from None
    wanted = policy.Identity(identity=trust.identity, issuer=trust.issuer)
    try:
        _, payload = verifier.verify_dsse(Bundle.from_json(data), wanted)
    except (SigstoreError, ValueError) as error:
        raise BadSignature(f"{what} does not hold: {type(error).__name__}") from None
    return trust.identity, payload


def _statement(payload: bytes, what: str) -> Statement:
    """Parse what was signed; a trusted key may have signed something else than ours."""
    try:
        tree = parse_json(payload, what)
        if tree["_type"] != STATEMENT_TYPE or not isinstance(tree["predicate"], dict):
            raise ValueError
        subject = {
            str(one["name"]): str(one["digest"]["sha256"]) for one in tree["subject"]
        }
        return Statement(str(tree["predicateType"]), subject, tree["predicate"])
    except (UserError, KeyError, TypeError, ValueError):
        raise BadSignature(f"{what} is a signature of no in-toto statement") from None
