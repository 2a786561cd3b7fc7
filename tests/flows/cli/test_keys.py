"""elder keys: whom the project believes, how a key is added, and what is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import build_app


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(*arguments: str, status: int = 0) -> str:
    called = CliRunner().invoke(build_app(), ["keys", *arguments])
    assert called.exit_code == status, called.output
    return called.stderr if status else called.stdout


def test_keys_are_made_on_purpose_and_listed(folder: Path) -> None:
    assert "nobody is trusted yet" in keys()
    assert "signs models from" in keys("--new", "--role", "model")
    before = (folder / "keys" / "signing.pem").read_bytes()
    said = keys("--new")
    assert "signs models and decisions" in said
    assert said.splitlines()[-1] == "commit keys/trusted.yaml"
    told = json.loads(keys("--json"))
    assert told["file"] == "keys/trusted.yaml"
    assert [key["here"] for key in told["keys"]] == [False, True]
    assert [key["roles"] for key in told["keys"]] == [["model"], ["model", "decision"]]
    (kept,) = (folder / "keys").glob("signing-until-*.pem")
    assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (before, 0o600)


def test_a_key_that_is_here_is_added(folder: Path) -> None:
    keys("--new")
    (folder / "keys" / "trusted.yaml").unlink()
    assert "nobody is trusted yet" in keys()
    assert "from always until further notice" in keys("--add")
    assert "stands in 'keys/trusted.yaml' already" in keys("--add", status=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--add",), "there is no private key"),
        (("--role", "boss"), "--role 'boss': valid: decision, model"),
        (("--new", "--set", "signing.private_key=null"), "name the file of a key"),
    ],
)
def test_wrong_inputs(arguments: tuple[str, ...], said: str, folder: Path) -> None:
    assert said in keys(*arguments, status=2)
    assert list(folder.iterdir()) == []
