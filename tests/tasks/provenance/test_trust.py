"""Whom to believe: keys with roles and dates, statements that are signed, and a signer that is another process."""

import json
import shlex
import sys
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import yaml

from elder.errors import UserError
from elder.params import Signing
from tasks.provenance.bundle import (
    DECISION,
    REGISTRATION,
    BadSignature,
    Statement,
    sign_statement,
    verify_bundle,
)
from tasks.provenance.keys import Signer, new_key, signer_of, trust_own_key
from tasks.provenance.signing import check_key
from tasks.provenance.trust import TrustedKey, trust_of

KEY = Signing()
CHOICE = Statement(DECISION, {"shop/3": "a" * 64}, {"reason": "better"})


def decider(root: Path) -> Signer:
    """Return what decides; the key is made by the first run, which signs a model."""
    check_key(KEY, root)
    return signer_of(KEY, root, "decision")


def edit_trust(root: Path, **changes: object) -> None:
    path = root / KEY.trusted
    (entry,) = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump([entry | changes]))


def test_a_statement_comes_back_as_it_was_signed(tmp_path: Path) -> None:
    data = sign_statement(CHOICE, decider(tmp_path))
    signed = verify_bundle(data, trust_of(KEY, tmp_path), DECISION, "entry 1")
    assert signed.statement == CHOICE
    assert signed.key == trust_of(KEY, tmp_path).keys[0]


def test_a_statement_of_another_kind_does_not_pass_for_it(tmp_path: Path) -> None:
    data = sign_statement(CHOICE, decider(tmp_path))
    with pytest.raises(BadSignature, match="of another kind"):
        verify_bundle(data, trust_of(KEY, tmp_path), REGISTRATION, "the registration")


def test_a_key_signs_what_its_role_says(tmp_path: Path) -> None:
    data = sign_statement(CHOICE, decider(tmp_path))
    edit_trust(tmp_path, roles=["model"])
    with pytest.raises(BadSignature, match="does not trust with this: role 'decision'"):
        verify_bundle(data, trust_of(KEY, tmp_path), DECISION, "entry 1")
    with pytest.raises(UserError, match="is not trusted with decisions"):
        signer_of(KEY, tmp_path, "decision")


def test_dates_bound_what_counts(tmp_path: Path) -> None:
    check_key(KEY, tmp_path)
    edit_trust(tmp_path, since="2026-02-01", until="2026-03-01")
    (key,) = trust_of(KEY, tmp_path).keys
    assert (key.since, key.until) == (date(2026, 2, 1), date(2026, 3, 1))
    assert key.untimely(datetime(2026, 2, 1, tzinfo=UTC)) is None
    assert key.untimely(datetime(2026, 3, 1, 23, 59, tzinfo=UTC)) is None
    early = key.untimely(datetime(2026, 1, 31, 23, 59, tzinfo=UTC))
    assert "counts since 2026-02-01, it signed on 2026-01-31" in str(early)
    late = key.untimely(datetime(2026, 3, 2, tzinfo=UTC))
    assert "counted until 2026-03-01" in str(late)


def test_who_only_decides_makes_no_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody is trusted here, and there is no priv"):
        signer_of(KEY, tmp_path, "decision")
    assert list(tmp_path.iterdir()) == []


def test_a_key_beyond_its_dates_signs_nothing(tmp_path: Path) -> None:
    check_key(KEY, tmp_path)
    for dates in ({"until": "2026-03-01"}, {"since": "2999-01-01"}):
        edit_trust(tmp_path, **({"since": "2026-02-01"} | dates))
        with pytest.raises(UserError, match="signs nothing that counts today"):
            signer_of(KEY, tmp_path, "model")


def test_a_second_key_beside_the_first(tmp_path: Path) -> None:
    before = sign_statement(CHOICE, decider(tmp_path))
    made = new_key(KEY, tmp_path, ["model", "decision"])
    after = sign_statement(CHOICE, decider(tmp_path))
    trust = trust_of(KEY, tmp_path)
    assert len(trust.keys) == 2
    assert verify_bundle(after, trust, DECISION, "entry 2").key == made
    assert verify_bundle(before, trust, DECISION, "entry 1").key == trust.keys[0]
    kept = [path.name for path in (tmp_path / "keys").glob("signing-until-*.pem")]
    assert len(kept) == 1
    with pytest.raises(UserError, match="stands in 'keys/trusted.yaml' already"):
        trust_own_key(KEY, tmp_path, ["model"])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1", "must be a list of keys"),
        ("- 1", "key 1: the entry"),
        ("- {name: a, public_key: x, roles: [model]}", "key 1: public_key"),
        ("- {name: a, roles: [model]}", "key 1: public_key"),
        ("- {name: a, public_key: MFkw, roles: [model], more: 1}", "key 1"),
    ],
)
def test_a_list_that_cannot_be_read(text: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / KEY.trusted).write_text(text)
    with pytest.raises(UserError, match=fault):
        trust_of(KEY, tmp_path)


def test_another_process_signs_and_keeps_the_key(tmp_path: Path) -> None:
    """The process that trains has no key; the one that signs does, and signs no decisions for it."""
    check_key(KEY, tmp_path)
    key = tmp_path / "signer" / "key.pem"
    key.parent.mkdir()
    (tmp_path / "keys" / "signing.pem").rename(key)
    program = [sys.executable, "-m", "tasks.provenance.signer", str(key)]
    away = KEY.model_copy(update={"command": shlex.join([*program, "--role", "model"])})
    told = Statement(REGISTRATION, {"shop/3": "a" * 64}, {"run_id": "r"})
    data = sign_statement(told, signer_of(away, tmp_path, "model"))
    signed = verify_bundle(data, trust_of(KEY, tmp_path), REGISTRATION, "it")
    assert signed.statement == told
    with pytest.raises(UserError, match="'urn:elder:decision:1' is not signed for"):
        sign_statement(CHOICE, signer_of(away, tmp_path, "decision"))


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("/no/such/program", "cannot be run"),
        ("echo yes", "did not answer with a signature"),
        ("false", "refused to sign, status 1: without a word"),
    ],
)
def test_a_command_that_signs_nothing(command: str, fault: str, tmp_path: Path) -> None:
    away = KEY.model_copy(update={"command": command})
    with pytest.raises(UserError, match=fault):
        sign_statement(CHOICE, signer_of(away, tmp_path, "decision"))


def test_the_payload_is_plain_json_for_anybody(tmp_path: Path) -> None:
    import base64

    data = sign_statement(CHOICE, decider(tmp_path))
    tree = json.loads(base64.b64decode(json.loads(data)["dsseEnvelope"]["payload"]))
    assert tree["predicate"] == {"reason": "better"}
    assert tree["subject"] == [{"name": "shop/3", "digest": {"sha256": "a" * 64}}]


def test_a_name_a_key_and_its_fingerprint() -> None:
    point = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE" + "A" * 86 + "=="
    with pytest.raises(ValueError, match="no public key"):
        TrustedKey(name="a", public_key=point, roles=("model",))
