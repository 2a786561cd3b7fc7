"""elder promote, rollback and history: what they print, what they ask, and when they refuse."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elder import params
from flows.cli import registry as registry_cli
from flows.cli.app import build_app
from tasks.provenance import identity
from tasks.registry.client import Registry
from tests.tasks.registered import keys, record, register, settings_for


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project's folder with a registry: its first start takes seconds."""
    folder = tmp_path_factory.mktemp("project")
    Registry(params.Registry(tracking_uri=f"sqlite:///{folder}/mlflow.db"))
    return folder


@pytest.fixture
def name(
    place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Register three versions; the third is worse."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(identity, "operating_system_user", lambda: "anna@host")
    monkeypatch.setenv("ELDER_USER", "eve, says the environment")
    name, signing = request.node.name, keys(place / "keys")
    settings = settings_for(
        str(place / "store"), f"sqlite:///{place}/mlflow.db", None, name, signing
    )
    for number, perplexity in ((1, 20.0), (2, 19.0), (3, 40.0)):
        register(settings, place / name / f"model {number}", record(perplexity))
    return name


def call(*arguments: str, status: int = 0, keys: str = "") -> tuple[str, str]:
    """Return stdout and stderr of a command that ends with this status."""
    found = CliRunner().invoke(build_app(), list(arguments), input=keys)
    assert found.exit_code == status, found.output
    assert "Traceback" not in found.stderr
    return found.stdout, found.stderr


def test_the_whole_story_in_json(name: str) -> None:
    yes = ("--json", "--yes", "--reason")
    first = json.loads(call("promote", name, "1", *yes, "it is the first")[0])
    assert (first["name"], first["version"], first["previous"], first["by"]) == (
        name,
        "1",
        None,
        "anna@host",
    )
    second = json.loads(call("promote", name, "2", *yes, "better")[0])
    assert (second["version"], second["previous"], second["number"]) == ("2", "1", 2)
    assert (second["vouched_by"], second["comment"]) == (
        "operating system",
        "eve, says the environment",
    )
    back = json.loads(call("rollback", name, *yes, "bad")[0])
    assert (back["action"], back["version"], back["previous"]) == ("rollback", "1", "2")
    told = json.loads(call("history", name, "--json")[0])
    assert {key: told[key] for key in ("name", "version", "previous", "by", "at")} == {
        key: back[key] for key in ("name", "version", "previous", "by", "at")
    }
    assert [{"name": name, **entry} for entry in told["entries"]] == [
        first,
        second,
        back,
    ]


def test_history_is_a_table(name: str) -> None:
    assert call("history", name)[0] == f"{name}: nothing was ever promoted\n"
    empty = json.loads(call("history", name, "--json")[0])
    assert empty == {
        "name": name,
        "version": None,
        "previous": None,
        "by": None,
        "at": None,
        "entries": [],
        "faults": [],
    }
    call("promote", name, "1", "--yes", "--reason", "it is [bold]the first[/bold]")
    lines = call("history", name)[0].splitlines()
    assert lines[0].strip() == f"{name}: champion is version 1"
    assert "it is [bold]the first[/bold]" in "\n".join(lines)
    assert len(lines) == 6  # title, three rules, headings, one entry


def test_a_check_that_says_no_is_status_1(name: str) -> None:
    call("promote", name, "1", "--yes", "--reason", "it is the first")
    out, err = call(
        "promote", name, "3", "--json", "--yes", "--reason", "mine", status=1
    )
    assert out == ""
    assert err.startswith(
        f"refused: version 3 of {name} was not promoted. The perplexity out of domain"
    )
    out, _ = call("promote", name, "3", "--yes", "--reason", "mine", "--force")
    assert f"{name}: champion is version 3 (was version 1), by anna@host at " in out
    assert "Forced: The perplexity out of domain" in out


def test_somebody_is_asked_on_a_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_cli, "on_terminal", lambda: True)
    call("promote", name, "1", "--reason", "it is the first", keys="y\n")
    out, err = call("promote", name, "2", "--json", keys="n\n", status=1)
    assert "{" not in out  # the runner echoes keys there
    assert f"{name}: champion would be version 2, now it is 1" in err
    lines = [line.split() for line in err.splitlines() if line.startswith("version")]
    assert lines == [
        ["version", "2", "9", "18.00", "19.00", "0.750"],
        ["version", "1", "9", "19.00", "20.00", "0.750"],
    ]
    assert "nothing was changed" in err
    assert json.loads(call("history", name, "--json")[0])["version"] == "1"
    out, err = call("promote", name, "2", "--json", keys="y\nbetter on our texts\n")
    assert json.loads(out.splitlines()[-1])["reason"] == "better on our texts"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("promote", "tiny", "1"),
            "there is no terminal to ask on: give --yes --reason TEXT",
        ),
        (("rollback", "tiny", "--reason", "x"), "there is no terminal to ask on"),
        (("rollback", "tiny", "--yes"), "--yes was given without a reason"),
        (
            ("promote", "absent", "1", "--yes", "--reason", "x"),
            "there is no registry sqlite:///mlflow.db here",
        ),
        (("history", "tiny"), "there is no registry sqlite:///mlflow.db here"),
    ],
)
def test_wrong_inputs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = call(*arguments, status=2)
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_history_in_doubt_is_status_1(name: str, place: Path) -> None:
    for version in ("1", "2"):
        call("promote", name, version, "--yes", "--reason", "better")
    entry = place / "store" / "history" / name / "000002.json"
    signed = entry.read_bytes()
    entry.write_bytes(signed.replace(b'"sig": "', b'"sig": "A'))
    out, err = call("history", name, "--json", status=1)
    told = json.loads(out)
    assert (told["version"], len(told["entries"]), len(told["faults"])) == (None, 1, 1)
    assert f"who is champion of {name} is in doubt: entry 2" in err
    assert "the decisions that can be believed" in call("history", name, status=1)[0]
    out, err = call("rollback", name, "--yes", "--reason", "x", status=1)
    assert "Nothing is moved while this is so" in err
    out, _ = call(
        *("promote", name, "1", "--yes", "--reason", "looked", "--accept-history")
    )
    assert "champion is version 1" in out
    assert json.loads(call("history", name, "--json")[0])["version"] == "1"


def test_names_that_mean_nothing(name: str) -> None:
    for arguments in (("absent", "1"), (name, "9"), (name, "one")):
        out, err = call("promote", *arguments, "--yes", "--reason", "x", status=2)
        assert (out, err.count("\n")) == ("", 1)
    assert (
        "no champion to go back to"
        in call("rollback", name, "--yes", "--reason", "x", status=2)[1]
    )
