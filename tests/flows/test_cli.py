"""What the flow's commands say to a wrong input: one sentence and exit status 2, before any work."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from elder.errors import UserError
from elder.settings import read_params
from flows.checks.doctor import CHECKS
from flows.checks.inputs import calibration
from flows.cli.app import build_app


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def refusal(*arguments: str) -> str:
    """Return the sentence that a command of this process refuses its arguments with."""
    found = CliRunner().invoke(build_app(), ["run", "--json", *arguments])
    assert found.exit_code == 2, found.output
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    return found.stderr.strip()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("select.ratoi=0.5", "select.ratoi: unknown key, did you mean 'ratio'"),
        ("select.ratio=nan", "select.ratio = 'nan': should be a finite number"),
        ("select.ratio=1", "should be less than 1"),
        ("select.layers=4", "layers 4 of 4 layers cannot be removed; remove 1 to 3"),
        ("select.method=sheb", "did you mean 'sleb'"),
        ("model.name=models/absent", "there is no model folder 'models/absent'"),
        ("model.name=data/tasks", "'data/tasks' has no config.json"),
        ("evaluate.tasks=[blimpp]", "there is no task 'blimpp'.*did you mean 'blimp'"),
        ("evaluate.task_data=nowhere", "there is no folder of task data"),
        ("evaluate.baselines=[slep]", "did you mean 'sleb'"),
        ("store.url=gs://bucket/x", "name a local folder or s3://bucket/prefix"),
        ("registry.tracking_uri=mlruns", "name sqlite:///FILE"),
    ],
)
def test_a_wrong_parameter_is_refused_before_any_work(
    here: Path, override: str, said: str
) -> None:
    assert re.search(said, refusal("--set", override))
    assert not (here / "runs").exists()
    assert not (here / "build").exists()


def test_an_unreachable_store_is_refused_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    said = refusal(
        "--set", "store.url=s3://bucket/x", "--set", "store.endpoint=http://127.0.0.1:9"
    )
    assert "http://127.0.0.1:9 cannot be reached" in said
    assert not (here / "runs").exists()


def test_an_absent_prefect_server_is_refused_before_any_work(here: Path) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert (
            "the Prefect server at http://127.0.0.1:9/api does not answer; start it, or unset"
            in refusal()
        )
    assert not (here / "runs").exists()


def test_a_folder_without_dvc_yaml_is_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no dvc.yaml here" in refusal()
    assert list(tmp_path.iterdir()) == []


def test_the_command_itself_ends_with_one_sentence(here: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from flows.cli import main; main()",
        "run",
        "--set",
        "gate.mode=maybe",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: the parameters have 1 fault(s):\n  gate.mode = 'maybe'"
    )
    assert "Traceback" not in done.stderr


def test_doctor_names_each_part(here: Path) -> None:
    found = CliRunner().invoke(build_app(), ["doctor", "--json"])
    assert found.exit_code == 0, found.output
    checks = {check["name"]: check for check in json.loads(found.stdout)["checks"]}
    parts = "device, disk, methods, model, evaluation, engines, code, key, webhook, calibration, store, history"
    more = ["registry", "prefect", "worker", "data remote"]
    assert list(checks) == [*parts.split(", "), *more]
    assert list(checks) == [check.name for check in CHECKS]
    assert not (here / "keys").exists()  # looking makes no key
    assert checks["model"]["detail"] == "models/tiny, llama of 4 layers"

    missing = CliRunner().invoke(
        build_app(), ["doctor", "--json", "--set", "calibration.source=data/absent.txt"]
    )
    assert missing.exit_code == 1
    parts = {check["name"]: check for check in json.loads(missing.stdout)["checks"]}
    assert [name for name, check in parts.items() if not check["ok"]] == ["calibration"]
    assert "set calibration.source" in parts["calibration"]["detail"]

    # an id of one word
    settings = read_params(None, ["calibration.source=wikitext"], {})
    with pytest.raises(
        UserError, match="the dataset 'wikitext' is on the Hub and HF_HUB_OFFLINE"
    ):
        calibration(settings, here)


def test_models_of_the_store_are_looked_up_with_the_commands_own_parameters(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from elder import params
    from flows.cli.app import SERVICES
    from tasks.store import models
    from tasks.store.open import open_store

    first = open_store("a store").publish(here / "models" / "tiny", "tiny")
    asked = []

    class Elsewhere:
        def __init__(self, section: params.Registry) -> None:
            asked.append(section.tracking_uri)

        def source_of(self, _: str) -> str:
            return first.url

    monkeypatch.setattr(models, "Registry", Elsewhere)
    own = ["registry.tracking_uri=sqlite:///other.db", "signing.required=false"]
    settings = read_params(None, own, {})
    folder = Path(SERVICES.local_model("models:/tiny@champion", settings))
    assert asked == ["sqlite:///other.db"]
    assert folder == here / models.PLACE / first.digest[:16]
    assert (folder / "model.safetensors").read_bytes() == (
        here / "models/tiny/model.safetensors"
    ).read_bytes()
    with pytest.raises(UserError, match="is no published model"):
        models.fetch(str(here / "models" / "tiny"), read_params(None, None, {}))
