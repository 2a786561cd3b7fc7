"""``infra/restore.py`` as a command: its exit status, and the one sentence that wrong input ends in."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from elder import params
from infra import restore as script
from tasks.registry.client import Registry
from tests.infra.restore.lost import Make, run
from tests.tasks.registry.decisions import promote

ROOT = Path(__file__).parents[3]


@pytest.fixture
def at(
    settings_with: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> params.Params:
    """Stand in a project with a model of one run."""
    settings = settings_with("before")
    run(settings, tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    told = {
        "registry.tracking_uri": settings.registry.tracking_uri,
        "signing.private_key": settings.signing.private_key,
        "signing.trusted": settings.signing.trusted,
    }
    monkeypatch.setenv("ELDER_SET", " ".join(f"{key}={told[key]}" for key in told))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return settings


def refusal(
    capsys: pytest.CaptureFixture[str],
    name: str,
    status: int = 2,
    lines: int = 1,
    **options: Any,
) -> str:
    """Give the command what it must refuse with one sentence, or with a list of faults; returns what it says."""
    with pytest.raises(SystemExit) as ended:
        script.main(name, **options)
    said = capsys.readouterr()
    assert (ended.value.code, said.err.count("\n")) == (status, lines)
    return said.err


def test_wrong_input_ends_in_one_sentence(
    at: params.Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = set((tmp_path / "store").rglob("*"))
    assert "holds no model 'tinny': it has tiny" in refusal(capsys, "tinny")
    assert "registry.name: use letters" in refusal(capsys, "../x", lines=2)
    away = ["registry.tracking_uri=http://127.0.0.1:9"]
    assert "it cannot be reached" in refusal(capsys, "tiny", overrides=away)
    assert "a word of --set is not" in refusal(capsys, "tiny", overrides=["nonsense"])

    model = next((tmp_path / "runs").glob("*/tiny"))
    assert "is not the model of a run" in refusal(capsys, "tiny", folder=[model.parent])
    assert "is empty or not a folder" in refusal(
        capsys, "tiny", folder=[tmp_path / "absent"]
    )
    assert "is a model of 'tiny'" in refusal(capsys, "other", folder=[model])
    (model / "model.safetensors").write_bytes(b"others")
    changed = "model.safetensors is not what was signed"
    assert changed in refusal(capsys, "tiny", folder=[model])
    (model / "record.json").write_text("[")  # is not even parsed
    assert "record.json is not what was signed" in refusal(
        capsys, "tiny", folder=[model]
    )
    (model / "model.sig").write_text("[")
    assert "is no signature" in refusal(capsys, "tiny", folder=[model])
    assert set((tmp_path / "store").rglob("*")) == stored


def test_a_history_that_the_registry_cannot_follow_is_exit_status_1(
    at: params.Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(at, tmp_path, "1")
    next((tmp_path / "store" / "models" / "tiny").glob("*/record.json")).unlink()
    Registry(at.registry).client.delete_registered_model("tiny")
    said = refusal(capsys, "tiny", status=1)
    assert (
        "not brought in line with the history: version 1 of tiny, champion by the history, is not in the"
        in said
    )


def test_a_champion_that_is_damaged_is_exit_status_1_until_it_is_brought_back(
    at: params.Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(at, tmp_path, "1")
    weights = next((tmp_path / "store" / "models" / "tiny").glob("*/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    said = refusal(capsys, "tiny", status=1)
    assert "the champion, version 1, does not lie whole in the store" in said
    model = next((tmp_path / "runs").glob("*/tiny"))
    script.main("tiny", [model])
    assert "champion: version 1, by decision 1" in capsys.readouterr().out


def test_the_command_itself(at: params.Params, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "infra" / "restore.py", "tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == "run 20261124-020100-ab12cd34: version 1\nchampion: none, nothing was ever promoted\n"
    )
