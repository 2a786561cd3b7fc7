"""Signatures of model folders, checked by the upstream tool as well as by this project."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from elder.errors import UserError
from elder.params import Signing
from tasks.provenance import signing
from tasks.provenance.signing import SIGNATURE, fault, public_key, sign

KEY = Signing(private_key="keys/signing.pem")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "extra.txt").write_text("extra")
    return folder


def upstream(folder: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """Verify with OpenSSF's own program, which knows nothing of this project."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(folder / SIGNATURE), "--public_key", str(key)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_upstream_tool_alone_verifies_and_refuses(
    model: Path, tmp_path: Path
) -> None:
    assert sign(model, KEY, tmp_path)
    key = public_key(KEY, tmp_path)
    moved = tmp_path / "another name"
    shutil.copytree(model, moved)
    (moved / "manifest.json").write_text("{}")  # as the folder lies in the store
    done = upstream(moved, key)
    assert done.returncode == 0, done.stdout + done.stderr
    (moved / "sub" / "extra.txt").write_text("extrb")
    done = upstream(moved, key)
    assert done.returncode != 0
    assert "sub/extra.txt" in done.stdout + done.stderr


def test_the_key_is_made_once_and_private(model: Path, tmp_path: Path) -> None:
    signing.check_key(KEY, tmp_path)
    private, public = (
        tmp_path / "keys" / "signing.pem",
        tmp_path / "keys" / "signing.pub.pem",
    )
    assert private.stat().st_mode & 0o777 == 0o600
    before = private.read_bytes(), public.read_bytes()
    sign(model, KEY, tmp_path)
    assert (private.read_bytes(), public.read_bytes()) == before
    assert {path.name for path in private.parent.iterdir()} == {
        "signing.pem",
        "signing.pub.pem",
    }


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
    assert fault(model, KEY, public_key(KEY, tmp_path)) is None


def test_what_breaks_a_signature_is_named(model: Path, tmp_path: Path) -> None:
    key = tmp_path / "keys" / "signing.pub.pem"
    assert fault(model, KEY, key) == "model.sig is missing"
    sign(model, KEY, tmp_path)
    signing.check_key(Signing(private_key="other.pem"), tmp_path)
    assert "does not hold" in str(fault(model, KEY, tmp_path / "other.pub.pem"))
    (model / ".gitattributes").write_text("* text")
    assert ".gitattributes" in str(fault(model, KEY, key))
    (model / ".gitattributes").unlink()
    (model / SIGNATURE).write_text("no signature")
    assert "does not hold" in str(fault(model, KEY, key))


def test_keys_that_are_none_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("text")
    with pytest.raises(UserError, match="holds no elliptic-curve key"):
        signing.check_key(Signing(private_key="text.pem"), tmp_path)
    signing.check_key(Signing(private_key="a.pem"), tmp_path)
    signing.check_key(Signing(private_key="b.pem"), tmp_path)
    shutil.copy(tmp_path / "a.pub.pem", tmp_path / "b.pub.pem")
    with pytest.raises(UserError, match="does not belong to b.pem"):
        signing.check_key(Signing(private_key="b.pem"), tmp_path)
    sign(model, KEY, tmp_path)
    with pytest.raises(UserError, match="is no public key in PEM"):
        fault(model, KEY, tmp_path / "text.pem")


def test_without_a_key_nothing_is_signed(model: Path, tmp_path: Path) -> None:
    off = Signing(private_key=None)
    signing.check_key(off, tmp_path)
    assert not sign(model, off, tmp_path)
    assert not (model / SIGNATURE).exists()


def test_keyless_says_what_it_needs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyless = Signing(keyless=True)
    monkeypatch.delenv("SIGSTORE_ID_TOKEN", raising=False)
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    with pytest.raises(UserError, match="needs an identity, and none is known here"):
        signing.check_key(keyless, tmp_path)
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", "token")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to fulcio")

    monkeypatch.setattr("model_signing.signing.Config.use_sigstore_signer", unreachable)
    with pytest.raises(UserError, match="Sigstore gave no signature"):
        sign(model, keyless, tmp_path)
    assert not (model / SIGNATURE).exists()
