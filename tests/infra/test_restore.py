"""A registry that is lost comes back from the store as it was, and a store from the folders of runs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elder import params
from elder.errors import UserError
from elder.record import Record
from infra import restore as script
from infra.restore import numbers, restore
from tasks.record import publish_folder, register, report
from tasks.registry.client import Registry
from tasks.registry.history import Entry
from tasks.registry.promotion import carry_out, history, plan_promotion, plan_rollback
from tests.tasks.registered import record as numbers_of
from tests.tasks.registered import settings_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an empty registry once: its first start takes seconds."""
    path = tmp_path_factory.mktemp("db") / "mlflow.db"
    Registry(params.Registry(tracking_uri=f"sqlite:///{path}"))
    return path


Make = Callable[..., params.Params]


@pytest.fixture
def settings_with(tmp_path: Path, empty: Path) -> Make:
    """Return a function that makes settings with a registry of their own, which begins as a copy of another's."""

    def make(name: str, beginning: Path = empty) -> params.Params:
        (tmp_path / name).mkdir()
        shutil.copy(beginning, tmp_path / name / "mlflow.db")
        return settings_for(str(tmp_path / "store"), f"sqlite:///{tmp_path}/{name}/mlflow.db")

    return make


def run(
    settings: params.Params, root: Path, number: int, mode: str = "on", passed: bool = True
) -> str | None:
    """Bring the model of a run made at minute ``number`` to store and registry, as the flow does; returns its version.

    Perplexities go down: 20 - number.
    """
    run_id = f"20261124-02{number:02}00-ab12cd34"
    folder = root / "runs" / run_id / settings.registry.name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(f"weights of {run_id}".encode())
    (folder / "elder.json").write_text("{}")
    made = numbers_of(20.0 - number)
    row = made["rows"][0] | {"name": "default", "removed": [1], "parameters": 96, "tasks": {}}
    record = made | {
        "run_id": run_id,
        "created": f"2026-11-24T02:{number:02}:00+00:00",
        "model": {
            "name": "models/dense",
            "revision": None,
            "digest": "d" * 64,
            "num_layers": 3,
            "parameters": 128,
        },
        "method": "default",
        "num_layers": 3,
        "removed": [1],
        "kept": [0, 2],
        "weights": {
            "name": "layer weight",
            "rounds": [{"removed": [1], "values": [0.9, 0.1, 0.8], "checked": []}],
        },
        "rows": [row | {"name": "dense", "kind": "dense"}, row],
        "curve": [
            {"stage": "recover", "step": step, "loss": 3.5 - step, "lr": 0.5} for step in (1, 2)
        ],
        "gate": {"mode": mode, "passed": passed, "rules": []},
        "data": {"source": {}, "stages": {}},
        "lineage": {
            "git_commit": "c0ffee",
            "git_clean": True,
            "data": {},
            "installed": {"torch": "2"},
        }
        | {"params": settings.model_dump(mode="json")},
    }
    unsigned = settings.model_copy(update={"signing": params.Signing(private_key=None)})
    published = publish_folder(folder, Record.model_validate(record), unsigned, root)
    mlflow_run, version = register.fn(
        Record.model_validate(record), published, settings.registry
    )
    later = {
        "artifact": published.model_dump(exclude={"uploaded_bytes"}),
        "model_version": version,
    }
    told = record | later | {"report": str(folder.with_name("report.html"))}
    report.fn(
        Record.model_validate(told),
        folder.with_name("report.html"),
        settings.registry,
        mlflow_run,
    )
    return version


def promote(settings: params.Params, root: Path, version: str) -> Entry:
    return carry_out(
        settings,
        root,
        plan_promotion(settings, root, "tiny", version),
        "anna@host",
        f"{version} it is",
    )


def roll_back(settings: params.Params, root: Path) -> Entry:
    return carry_out(
        settings, root, plan_rollback(settings, root, "tiny"), "ben@host", "it failed"
    )


def snapshot(settings: params.Params) -> dict[str, Any]:
    """Return all that the registry tells, under names that a new registry has, too."""
    registry = Registry(settings.registry)
    client = registry.client
    experiment = client.get_experiment_by_name(settings.registry.experiment)
    runs, versions = {}, {}
    for found in client.search_runs([experiment.experiment_id]):
        data, run_id = found.data, found.info.run_id
        metrics = {
            key: sorted(
                (m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, key)
            )
            for key in data.metrics
        }
        attached = json.loads(
            Path(client.download_artifacts(run_id, "record.json")).read_text()
        )
        attached.pop("report", None)  # where the run's own machine has it
        runs[data.tags["run_id"]] = {
            "tags": data.tags,
            "params": data.params,
            "metrics": metrics,
            "status": found.info.status,
            "files": registry.attached(run_id),
            "record": attached,
        }
    names = {
        found.info.run_id: found.info.run_name
        for found in client.search_runs([experiment.experiment_id])
    }
    for version in client.search_model_versions("name = 'tiny'"):
        versions[version.version] = (names[version.run_id], version.source, version.tags)
    model = client.get_registered_model("tiny")
    return {"runs": runs, "versions": versions, "tags": model.tags, "aliases": model.aliases}


def test_the_whole_story_comes_back_and_a_second_time_changes_nothing(
    settings_with: Make, tmp_path: Path
) -> None:
    before = settings_with("before")
    assert run(before, tmp_path, 1) == "1"
    assert run(before, tmp_path, 2) == "2"
    assert run(before, tmp_path, 3, passed=False) is None
    assert run(before, tmp_path, 4, mode="dry-run", passed=False) == "3"
    promote(before, tmp_path, "1")
    second = promote(before, tmp_path, "2")
    last = roll_back(before, tmp_path)
    told = snapshot(before)
    assert told["aliases"] == {"champion": 1, "challenger": 3}
    assert sorted(told["tags"]) == ["history/000001", "history/000002", "history/000003"]
    assert told["versions"][1][2]["promoted_from"] == "2"
    assert (told["versions"][2][2]["promoted_at"], told["versions"][2][2]["archived_at"]) == (
        second.at,
        last.at,
    )
    assert len(told["runs"]) == 4

    after = settings_with("after")
    lines, fault = restore(after, tmp_path)
    assert fault == ""
    assert lines == [
        "run 20261124-020300-ab12cd34: refused by the gate",
        "run 20261124-020100-ab12cd34: version 1",
        "run 20261124-020200-ab12cd34: version 2",
        "run 20261124-020400-ab12cd34: version 3",
        "champion: version 1, by decision 3 of the history",
    ]
    again = snapshot(after)
    assert again == told
    client = Registry(after.registry).client
    made = client.get_run(client.get_model_version("tiny", "2").run_id).info
    assert (
        made.start_time == made.end_time == 1795485720000
    )  # date -d 2026-11-24T02:02:00Z +%s, in ms
    changed = client.get_registered_model("tiny").last_updated_timestamp
    assert restore(after, tmp_path) == (lines, "")
    assert snapshot(after) == told
    assert client.get_registered_model("tiny").last_updated_timestamp == changed


def test_an_old_backup_of_the_registry_is_brought_up_to_date(
    settings_with: Make, tmp_path: Path
) -> None:
    """Its champion is the present one, so the alias alone would not show what is missing."""
    before = settings_with("before")
    run(before, tmp_path, 1)
    promote(before, tmp_path, "1")
    backup = settings_with("backup", tmp_path / "before" / "mlflow.db")
    run(before, tmp_path, 2)
    promote(before, tmp_path, "2")
    roll_back(before, tmp_path)
    assert restore(backup, tmp_path)[1] == ""
    told, again = snapshot(before), snapshot(backup)
    assert again == told


def test_versions_keep_the_numbers_of_the_history_where_others_are_gone(
    settings_with: Make, tmp_path: Path
) -> None:
    before = settings_with("before")
    for number in (1, 2, 3):
        run(before, tmp_path, number)
    promote(before, tmp_path, "3")
    told = snapshot(before)
    shutil.rmtree(told["versions"][2][1])
    after = settings_with("after")
    lines, fault = restore(after, tmp_path)
    assert ([line.partition(": ")[2] for line in lines[:2]], fault) == (
        ["version 1", "version 3"],
        "",
    )
    again = snapshot(after)
    assert (again["aliases"], again["tags"]) == (told["aliases"], told["tags"])
    assert again["versions"] == {number: told["versions"][number] for number in (1, 3)}


def entry(digest: str, version: str) -> Entry:
    told = {
        "action": "promote",
        "previous": None,
        "by": "a",
        "at": "b",
        "reason": "c",
        "compared": "d",
    }
    return Entry(number=1, version=version, digest=digest, **told)


@pytest.mark.parametrize(
    ("champions", "wanted"),
    [
        ({}, [1, 2, 3, 4]),
        ({"b": "3"}, [1, 3, 4, 5]),  # one between a and b is gone
        ({"b": "1"}, [2, 1, 3, 4]),  # a was registered after b
        (
            {"a": "1", "c": "2"},
            [1, 3, 2, 4],
        ),  # b never was a version: it comes after the champions
        ({"d": "2", "gone": "1"}, [3, 4, 5, 2]),  # what was version 1 has no bytes any more
    ],
)
def test_numbers_of_versions(champions: dict[str, str], wanted: list[int]) -> None:
    log = [entry(digest, version) for digest, version in champions.items()]
    assert list(numbers(["a", "b", "c", "d"], log).values()) == wanted


def test_a_registry_with_other_versions_is_not_told_what_is_false(
    settings_with: Make, tmp_path: Path
) -> None:
    """A schedule fired on the empty registry before anybody filled it."""
    before = settings_with("before")
    for number in (1, 2):
        run(before, tmp_path, number)
    promote(before, tmp_path, "1")
    told = snapshot(before)
    after = settings_with("after")
    assert run(after, tmp_path, 5) == "1"
    found = snapshot(after)
    with pytest.raises(
        UserError, match="version 1 of tiny is the model .*docs/disaster-recovery.md"
    ):
        restore(after, tmp_path)
    assert snapshot(after) == found

    client = Registry(after.registry).client
    client.delete_registered_model("tiny")  # the way out that docs/disaster-recovery.md shows
    assert restore(after, tmp_path)[1] == ""
    again = snapshot(after)
    assert again["aliases"] == {"champion": 1, "challenger": 3}
    assert again["tags"] == told["tags"]
    assert {number: again["versions"][number] for number in (1, 2)} == told["versions"]
    assert again["versions"][3][0] == "20261124-020500-ab12cd34"


def test_a_lost_store_comes_back_from_the_folders_of_runs_without_its_history(
    settings_with: Make, tmp_path: Path
) -> None:
    settings = settings_with("before")
    for number in (1, 2):
        run(settings, tmp_path, number)
    first = promote(settings, tmp_path, "1")
    told = snapshot(settings)
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tmp_path / "before" / "mlartifacts")
    folders = sorted((tmp_path / "runs").glob("*/tiny"))
    assert [script.publish(folder, settings, tmp_path) for folder in folders] == [
        told["versions"][number][1] for number in (1, 2)
    ]
    lines, fault = restore(settings, tmp_path)
    assert fault == ""
    assert lines[-1] == (
        "champion: version 1, by the registry alone: the store has no history of tiny; elder promote tiny 1 begins a"
        " new one"
    )
    again = snapshot(settings)
    assert again == told

    new = promote(settings, tmp_path, "1")
    assert (new.number, new.previous) == (1, None)
    assert "was the champion already" in new.compared
    assert history(settings, tmp_path, "tiny") == ([new], "")
    found = snapshot(settings)
    assert found["tags"] == {
        "history/000001": f"promote to version 1 by anna@host at {new.at}: 1 it is",
        "lost-history/000001": f"promote to version 1 by anna@host at {first.at}: 1 it is",
    }
    assert found["aliases"] == told["aliases"]


def test_damaged_models_are_left_out_and_named(settings_with: Make, tmp_path: Path) -> None:
    before = settings_with("before")
    for number in (1, 2, 3, 4):
        run(before, tmp_path, number)
    places = {
        number: Path(version[1]) for number, version in snapshot(before)["versions"].items()
    }
    record = places[1] / "record.json"
    record.write_text(record.read_text().replace("19.0", "9.0"))
    (places[2] / "record.json").unlink()
    (places[3] / "manifest.json").write_text("{")
    lines, fault = restore(settings_with("after"), tmp_path)
    assert fault == ""
    for number, said in (
        (1, "is not what the manifest says"),
        (2, "no record.json"),
        (3, "is not readable"),
    ):
        assert (
            sum(
                places[number].name in line and "left out" in line and said in line
                for line in lines
            )
            == 1
        )
    assert "run 20261124-020400-ab12cd34: version 1" in lines
    assert lines[-1] == "champion: none, nothing was ever promoted"
    assert len(lines) == 5


@pytest.fixture
def at(settings_with: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> params.Params:
    """Stand in a project with a model of one run."""
    settings = settings_with("before")
    run(settings, tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELDER_SET", f"registry.tracking_uri={settings.registry.tracking_uri}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return settings


def refusal(
    capsys: pytest.CaptureFixture[str], name: str, status: int = 2, **options: Any
) -> str:
    """Give the command what it must refuse with one sentence; returns the sentence."""
    with pytest.raises(SystemExit) as ended:
        script.main(name, **options)
    said = capsys.readouterr()
    assert (ended.value.code, said.err.count("\n")) == (status, 1)
    return said.err


def test_wrong_input_ends_in_one_sentence(
    at: params.Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = set((tmp_path / "store").rglob("*"))
    assert "holds no model 'tinny': it has tiny" in refusal(capsys, "tinny")
    assert "model name '../x'" in refusal(capsys, "../x")
    away = ["registry.tracking_uri=http://127.0.0.1:9"]
    assert "it cannot be reached" in refusal(capsys, "tiny", overrides=away)
    assert "'nonsense'" in refusal(capsys, "tiny", overrides=["nonsense"])

    model = next((tmp_path / "runs").glob("*/tiny"))
    assert "is not the model of a run" in refusal(capsys, "tiny", folder=[model.parent])
    assert "is empty or not a folder" in refusal(capsys, "tiny", folder=[tmp_path / "absent"])
    assert "is a model of 'tiny'" in refusal(capsys, "other", folder=[model])
    (model / "model.safetensors").write_bytes(b"others")
    assert "model.safetensors changed" in refusal(capsys, "tiny", folder=[model])
    (model / "record.json").write_text("[]")
    assert "cannot be read" in refusal(capsys, "tiny", folder=[model])
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


def test_the_command_itself(at: params.Params, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "infra" / "restore.py", "tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == "run 20261124-020100-ab12cd34: version 1\nchampion: none, nothing was ever promoted\n"
    )
