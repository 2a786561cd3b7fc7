"""Signatures of model folders, checked by the upstream tool as well as by this project."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from elder.errors import UserError
from elder.params import Signing
from tasks.provenance.bundle import BadSignature, Signed
from tasks.provenance.signing import SIGNATURE, check_files, check_key, sign
from tasks.provenance.trust import trust_file, trust_of
from tasks.store.manifest import describe

KEY = Signing(private_key="keys/signing.pem")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "extra.txt").write_text("extra")
    return folder


def checked(folder: Path, root: Path, settings: Signing = KEY) -> Signed:
    path = folder / SIGNATURE
    data = path.read_bytes() if path.exists() else None
    return check_files(data, describe(folder), trust_of(settings, root))


def upstream(folder: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """Verify with OpenSSF's own program, which knows nothing of this project."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / SIGNATURE), "--public_key", str(key)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_upstream_tool_alone_verifies_and_refuses(
    model: Path, tmp_path: Path
) -> None:
    assert sign(model, KEY, tmp_path)
    key = tmp_path / "keys" / "signing.pub.pem"
    moved = tmp_path / "another name"
    shutil.copytree(model, moved)
    (moved / "manifest.json").write_text("{}")  # as the folder lies in the store
    done = upstream(moved, key)
    assert done.returncode == 0, done.stdout + done.stderr
    (moved / "sub" / "extra.txt").write_text("extrb")
    done = upstream(moved, key)
    assert done.returncode != 0
    assert "sub/extra.txt" in done.stdout + done.stderr


def test_a_signature_of_the_upstream_tool_is_read(model: Path, tmp_path: Path) -> None:
    check_key(KEY, tmp_path)
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(model)]
    command += ["--private_key", str(tmp_path / "keys" / "signing.pem")]
    command += ["--signature", str(model / SIGNATURE)]
    subprocess.run(command, check=True, capture_output=True)
    assert checked(model, tmp_path).statement.subject.keys() == {"model"}


def test_the_first_key_is_made_announced_and_trusted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_key(KEY, tmp_path)
    assert "Commit keys/trusted.yaml" in " ".join(capsys.readouterr().err.split())
    private, public = (
        tmp_path / "keys" / "signing.pem",
        tmp_path / "keys" / "signing.pub.pem",
    )
    assert private.stat().st_mode & 0o777 == 0o600
    (only,) = trust_of(KEY, tmp_path).keys
    assert only.since == datetime.now(UTC).date()
    assert trust_file(public).keys[0].public_key == only.public_key
    before = private.read_bytes(), public.read_bytes()
    sign(model, KEY, tmp_path)
    assert (private.read_bytes(), public.read_bytes()) == before
    assert capsys.readouterr().err == ""
    names = {path.name for path in private.parent.iterdir()}
    assert names == {"signing.pem", "signing.pub.pem", "trusted.yaml"}


def test_a_lost_key_is_not_replaced_in_silence(model: Path, tmp_path: Path) -> None:
    sign(model, KEY, tmp_path)
    (tmp_path / "keys" / "signing.pem").unlink()
    with pytest.raises(UserError, match="bring it back, or make another on purpose"):
        sign(model, KEY, tmp_path)
    assert not (tmp_path / "keys" / "signing.pem").exists()


def test_a_key_that_others_can_read_is_refused(model: Path, tmp_path: Path) -> None:
    check_key(KEY, tmp_path)
    (tmp_path / "keys" / "signing.pem").chmod(0o640)
    with pytest.raises(UserError, match=r"mode 0640.*chmod 600"):
        sign(model, KEY, tmp_path)


def test_a_key_that_is_not_trusted_signs_nothing(model: Path, tmp_path: Path) -> None:
    check_key(KEY, tmp_path)
    other = KEY.model_copy(update={"trusted": "others.yaml"})
    check_key(other.model_copy(update={"private_key": "other.pem"}), tmp_path)
    with pytest.raises(UserError, match="is not trusted with models"):
        sign(model, other, tmp_path)


def test_a_signature_that_holds_is_kept_and_one_that_does_not_is_replaced(
    model: Path, tmp_path: Path
) -> None:
    sign(model, KEY, tmp_path)
    first = (model / SIGNATURE).read_bytes()
    sign(model, KEY, tmp_path)
    assert (model / SIGNATURE).read_bytes() == first
    (model / "config.json").write_text("{ }")
    sign(model, KEY, tmp_path)
    assert (model / SIGNATURE).read_bytes() != first
    assert checked(model, tmp_path).key is not None


def test_what_breaks_a_signature_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSignature, match=r"^model.sig is missing$"):
        checked(model, tmp_path)
    sign(model, KEY, tmp_path)
    other = Signing(private_key="other.pem", trusted="other.yaml")
    with pytest.raises(BadSignature, match="nobody is trusted here"):
        checked(model, tmp_path, other)
    check_key(other, tmp_path)
    with pytest.raises(BadSignature, match="by a key that 'other.yaml' does not name"):
        checked(model, tmp_path, other)
    (model / ".gitattributes").write_text("* text")
    with pytest.raises(BadSignature, match=".gitattributes was not signed"):
        checked(model, tmp_path)
    (model / ".gitattributes").unlink()
    (model / "sub" / "extra.txt").rename(model / "moved.txt")
    with pytest.raises(BadSignature, match="sub/extra.txt was signed and is missing"):
        checked(model, tmp_path)
    (model / "moved.txt").rename(model / "sub" / "extra.txt")
    signature = (model / SIGNATURE).read_text()
    for text in ("no signature", "[]", "{}", '{"verificationMaterial": []}'):
        (model / SIGNATURE).write_text(text)
        with pytest.raises(BadSignature, match="is no signature"):
            checked(model, tmp_path)
    tree = json.loads(signature)
    tree["dsseEnvelope"]["payload"] = "e30="  # {}
    (model / SIGNATURE).write_text(json.dumps(tree))
    with pytest.raises(BadSignature, match="it is not what the key"):
        checked(model, tmp_path)


def test_keys_that_are_none_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("text")
    (tmp_path / "text.pem").chmod(0o600)
    with pytest.raises(UserError, match="holds no elliptic-curve key"):
        check_key(Signing(private_key="text.pem"), tmp_path)
    a = Signing(private_key="a.pem", trusted="a.yaml")
    b = Signing(private_key="b.pem", trusted="b.yaml")
    check_key(a, tmp_path)
    check_key(b, tmp_path)
    shutil.copy(tmp_path / "a.pub.pem", tmp_path / "b.pub.pem")
    with pytest.raises(UserError, match="does not belong to b.pem"):
        check_key(b, tmp_path)
    with pytest.raises(UserError, match="is no public key in PEM"):
        trust_file(tmp_path / "text.pem")


def test_without_a_key_nothing_is_signed(model: Path, tmp_path: Path) -> None:
    off = Signing(private_key=None)
    check_key(off, tmp_path)
    assert not sign(model, off, tmp_path)
    assert not (model / SIGNATURE).exists()


def test_keyless_says_what_it_needs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyless = Signing(keyless=True)
    monkeypatch.delenv("SIGSTORE_ID_TOKEN", raising=False)
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    with pytest.raises(UserError, match="needs an identity, and none is known here"):
        check_key(keyless, tmp_path)
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", "token")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to fulcio")

    monkeypatch.setattr("model_signing.signing.Config.use_sigstore_signer", unreachable)
    with pytest.raises(UserError, match="Sigstore gave no signature"):
        sign(model, keyless, tmp_path)
    assert not (model / SIGNATURE).exists()
