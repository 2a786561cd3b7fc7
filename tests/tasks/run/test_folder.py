"""Which folder a run gets, and when what lies there is gone on with."""

import json
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from elder.errors import UserError
from elder.fingerprint import Fingerprint
from elder.locks import Busy
from elder.params import Params
from elder.record import Record
from elder.settings import validate
from tasks.run import folder as module
from tasks.run.folder import (
    abandoned_runs,
    close_run,
    finished_record,
    is_finished,
    new_run_id,
    run_in_folder,
    run_key,
    start_over_unless_same,
)
from tasks.run.run import Run, write_stage_params
from tests.elder.records import make_record

SECRET = "hunter2secret"


def in_folder(
    root: Path, settings: Params | None = None, method: str = "default"
) -> Any:
    return run_in_folder(root, settings or validate({}), method, "models/tiny", None)


def fail(root: Path, made: str, error: Exception) -> Path:
    """Start a run that makes a folder in its own and fails; returns its folder."""
    with suppress(type(error)), in_folder(root) as run:
        (run.folder / made).mkdir(exist_ok=True)
        raise error
    return run.folder


def interrupted(root: Path) -> Path:
    """Start a run that is interrupted after its first stage; returns its folder."""
    return fail(root, "work", RuntimeError("killed"))


def record_of(run: Run, **changed: Any) -> Record:
    return Record.model_validate(make_record() | {"run_id": run.run_id} | changed)


def test_an_unfinished_run_is_gone_on_with_until_it_is_closed(tmp_path: Path) -> None:
    first = interrupted(tmp_path)
    assert interrupted(tmp_path) == first
    with in_folder(tmp_path, method="sleb") as other:
        assert other.folder != first
    assert abandoned_runs(tmp_path) == [first.name]
    with in_folder(tmp_path) as again:
        assert again.folder == first
        close_run(first, record_of(again))
    assert is_finished(first)
    assert abandoned_runs(tmp_path) == []


def test_a_run_that_is_at_work_is_not_abandoned(tmp_path: Path) -> None:
    left = interrupted(tmp_path)
    with in_folder(tmp_path, method="sleb") as at_work:
        assert abandoned_runs(tmp_path) == [left.name]
        assert not is_finished(at_work.folder)


def test_what_bears_on_no_result_starts_no_other_run() -> None:
    judged = {"select": {"elder": {"written": 0}}}
    key = run_key(validate(judged), "default")
    beside = {
        "notify": {"events": ["failure"]},
        "energy": {"country": "DEU"},
        "launch": {"processes": 2},
        "select": {"offload": "disk"},
    }
    assert run_key(validate(beside), "default") == key
    others = [
        run_key(validate({}), "default"),
        run_key(validate({}), "sleb"),
        run_key(validate({"select": {"ratio": 0.5}}), "default"),
        run_key(validate({"registry": {"name": "other"}}), "default"),
        run_key(validate({"gate": {"mode": "off"}}), "default"),
    ]
    assert len({key, *others}) == 6


def test_ids_of_one_second_differ_and_sort_by_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock:
        second = 1

        @classmethod
        def now(cls, _: Any) -> datetime:
            return datetime(2026, 11, 24, 2, 0, cls.second, tzinfo=UTC)

    monkeypatch.setattr(module, "datetime", Clock)
    same = {new_run_id("abcdef12") for _ in range(50)}
    assert len(same) == 50
    Clock.second = 2
    assert max(same) < new_run_id("00000000")


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    fail(tmp_path, "data", UserError("the calibration text is empty"))
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "error", [Timeout("a lock of the run"), Busy("a lock of the run")]
)
def test_errors_pass_through(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match="a lock of the run"), in_folder(tmp_path):
        raise error


def test_a_folder_that_another_run_holds_is_left_alone(tmp_path: Path) -> None:
    first = interrupted(tmp_path)
    with in_folder(tmp_path) as held:
        assert held.folder == first
        with in_folder(tmp_path) as other:
            assert other.folder != first


def test_a_run_goes_on_with_the_password_of_now_and_writes_none(tmp_path: Path) -> None:
    def settings(password: str) -> Params:
        uri = f"postgresql://me:{password}@db/x"
        return validate({"registry": {"tracking_uri": uri}})

    with suppress(RuntimeError), in_folder(tmp_path, settings("an0ld+one")) as first:
        (first.folder / "work").mkdir()
        raise RuntimeError("killed")
    with in_folder(tmp_path, settings(SECRET)) as run:
        assert run.folder == first.folder
        assert SECRET in run.settings.registry.tracking_uri
        text = (run.folder / "params.yaml").read_text()
        assert "tracking_uri: postgresql://db/x" in text
        assert SECRET not in text


def test_no_password_reaches_the_stages(tmp_path: Path) -> None:
    settings = validate(
        {"registry": {"tracking_uri": f"postgresql://me:{SECRET}@db/x"}}
    )
    run = Run(tmp_path, tmp_path, settings, "default", "build/models/x", "c0ffee")
    write_stage_params(run)
    text = run.stage_params.read_text()
    assert SECRET not in text
    assert "name: build/models/x" in text
    assert "revision: c0ffee" in text
    assert f"in_domain: {tmp_path}/data/in_domain.txt" in text


@pytest.mark.parametrize("name", ["work", "data", "baselines", "lock", "org/model"])
def test_the_model_has_a_folder_of_its_own_whatever_its_name(
    tmp_path: Path, name: str
) -> None:
    settings = Params.model_construct(
        registry=Params().registry.model_construct(
            name=name, tracking_uri="", experiment="e"
        )
    )
    run = Run(tmp_path, tmp_path / "r", settings, "default", "models/tiny", None)
    taken = {run.work, run.data, run.baseline("sleb").parent, run.folder / "lock"}
    assert run.model.parent == run.folder
    assert run.model not in taken


def test_what_was_done_with_other_inputs_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, tmp_path, Params(), "default", "models/tiny", None)

    def attempt(**parts: Any) -> bool:
        start_over_unless_same(run, Fingerprint(parts))
        kept = run.work.exists()
        run.work.mkdir(exist_ok=True)
        (tmp_path / "candidate.json").write_text("{}")
        return kept

    (tmp_path / "params.yaml").write_text("x")
    assert not attempt(data="a", model=[1])
    assert attempt(data="a", model=[1])
    capsys.readouterr()
    assert not attempt(data="b", model=[1])
    assert "had other inputs: data" in capsys.readouterr().err
    assert (tmp_path / "params.yaml").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", "\0" * 8])
def test_a_mark_that_a_power_cut_emptied_is_none(tmp_path: Path, damage: str) -> None:
    with in_folder(tmp_path) as run:
        start_over_unless_same(run, Fingerprint({"data": "a"}))
        run.work.mkdir()
        (run.folder / "inputs.json").write_text(damage)
        start_over_unless_same(run, Fingerprint({"data": "a"}))
        assert not run.work.exists()
        run.work.mkdir()
        (run.folder / "run.json").write_text(damage)
    assert not is_finished(run.folder)
    with in_folder(tmp_path) as again:
        assert again.folder == run.folder


def test_a_finished_run_keeps_no_work_folders(tmp_path: Path) -> None:
    with in_folder(tmp_path) as run:
        for work in (run.work, run.baseline("sleb") / "work"):
            (work / "remove").mkdir(parents=True)
        run.model.mkdir()
        close_run(run.folder, record_of(run))
    assert {path.name for path in run.folder.iterdir()} >= {
        "model",
        "run.json",
        "baselines",
    }
    assert not list(run.folder.rglob("work"))
    # A run that was killed between its mark and its tidying is tidied by the next.
    (run.work / "remove").mkdir(parents=True)
    with in_folder(tmp_path) as other:
        assert other.folder != run.folder
    assert not run.work.exists()


def test_the_latest_finished_record_of_the_same_parameters_counts(
    tmp_path: Path,
) -> None:
    def finish(created: str, version: str) -> Path:
        with in_folder(tmp_path) as run:
            record = record_of(run, created=created, model_version=version)
            later = {"artifact", "model_version", "report"}
            told = record.model_dump(mode="json", exclude=later, exclude_unset=True)
            run.record.write_text(json.dumps(told))
            close_run(run.folder, record)
        return run.folder

    assert finished_record(tmp_path, validate({}), "default") is None
    first = finish("2026-11-24T02:00:00+00:00", "1")
    second = tmp_path / "runs" / ("20991231-000000" + first.name[15:])
    shutil.copytree(first, second)
    mark = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps(mark | {"model_version": "2"}))
    found = finished_record(tmp_path, validate({}), "default")
    assert found is not None
    assert (found.model_version, found.artifact["digest"]) == ("2", "5f" * 32)
    assert finished_record(tmp_path, validate({}), "sleb") is None
    assert finished_record(tmp_path, validate({}), "default", "2026-11-25") is None
    (second / "record.json").write_text("")  # a damaged one is none
    found = finished_record(tmp_path, validate({}), "default")
    assert found is not None
    assert found.model_version == "1"
