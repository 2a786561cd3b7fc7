"""The work folder of a compression: what counts as done, what is done again, who may work there, what a stage is."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from elder.compression import compress as compressing
from elder.compression.compress import compress, describe, finish
from elder.compression.job import Job, Stage, get_stage, open_job, processes
from elder.compression.results import StageResult, Trained
from elder.compression.stages import STAGES, SYNTHETIC
from elder.errors import UserError
from elder.fingerprint import RECIPE
from elder.locks import hold
from elder.params import Params
from elder.record import Spent
from elder.settings import validate


@pytest.fixture(scope="module")
def settings(model_folder: Path) -> Params:
    """Return a short compression: layers by block influence, a regularisation and a recovery of a few steps."""
    return validate(
        {
            "model": {"name": str(model_folder), "device": "cpu"},
            "calibration": {"samples": 8, "seq_len": 32},
            "select": {"method": "shortgpt", "layers": 2},
            "regularise": {"epochs": 1, "lr": 1e-3, "lambda2": 0.1},
            "compensate": {"method": "none"},
            "recover": {"epochs": 1, "lr": 1e-2, "distil": {"synthetic": 1}},
        }
    )


@pytest.fixture(scope="module")
def done(
    settings: Params, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Return the work folder of an undisturbed compression, and the sha256 of the model that it ends with."""
    folder = tmp_path_factory.mktemp("done")
    with open_job(folder / "work", settings, text_file, STAGES) as job:
        job.run_all()
        record = finish(job, folder / "out", "default")
    assert record.sha256
    return folder / "work", record.sha256


@pytest.fixture
def again(
    settings: Params, text_file: Path, done: tuple[Path, str], tmp_path: Path
) -> Callable[..., list[str]]:
    """Go on from a copy of that work folder; returns which stages ran, once the model is the same to the byte."""
    whole, sha256 = done
    work = tmp_path / "work"
    shutil.copytree(whole, work)

    def go_on() -> list[str]:
        ran: list[str] = []

        def watched(stage: Stage) -> Stage:
            return replace(
                stage, run=lambda job: (ran.append(stage.name), stage.run(job))[1]
            )

        stages = [watched(stage) for stage in STAGES]
        with open_job(work, settings, text_file, stages) as job:
            job.run_all()
            assert finish(job, tmp_path / "out", "default").sha256 == sha256
        assert not list(work.glob("*.checkpoint"))
        return ran

    return go_on


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    kinds = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "zeroed": bytes(len(content)),
        "another": b'{"parts": 1}',
    }
    path.write_bytes(kinds[how])


def test_what_is_done_is_not_done_again(again: Callable[..., list[str]]) -> None:
    assert again() == []


@pytest.mark.parametrize("how", ["empty", "truncated", "zeroed", "another"])
@pytest.mark.parametrize("stage", ["learn", "remove"])
def test_a_marker_that_cannot_be_read_is_none(
    again: Callable[..., list[str]], tmp_path: Path, stage: str, how: str
) -> None:
    damage(tmp_path / "work" / f"{stage}.json", how)
    assert again() == [stage]


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("regularise", "model.safetensors"),
        ("remove", "model.safetensors"),
        ("remove", "config.json"),
        ("recover", "model.safetensors"),
    ],
)
def test_a_model_that_is_not_what_its_marker_says_is_made_again(
    again: Callable[..., list[str]], tmp_path: Path, stage: str, file: str
) -> None:
    damage(tmp_path / "work" / stage / file, "zeroed")
    assert again() == [stage]


def test_a_model_folder_that_is_gone_is_made_again(
    again: Callable[..., list[str]], tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "work" / "regularise")
    assert again() == ["regularise"]


@pytest.mark.parametrize("stage", ["regularise", "remove", "recover"])
def test_a_model_folder_without_its_marker_is_replaced(
    again: Callable[..., list[str]], tmp_path: Path, stage: str
) -> None:
    (tmp_path / "work" / f"{stage}.json").unlink()  # killed between the two
    assert again() == [stage]


@pytest.mark.parametrize("how", ["empty", "truncated", "zeroed", "another"])
def test_a_key_that_cannot_be_read_is_another_compressions(
    again: Callable[..., list[str]], tmp_path: Path, how: str
) -> None:
    damage(tmp_path / "work" / "key.json", how)
    assert again() == [stage.name for stage in STAGES]


@pytest.mark.parametrize("how", ["empty", "truncated", "zeroed"])
def test_written_text_that_cannot_be_read_is_written_again(
    again: Callable[..., list[str]], tmp_path: Path, how: str
) -> None:
    work = tmp_path / "work"
    damage(work / SYNTHETIC, how)
    (work / "recover.json").unlink()
    (work / "recover.checkpoint").write_bytes(b"\0" * 100)
    assert again() == ["recover"]


def test_a_stage_whose_ground_is_damaged_first_mends_that(
    settings: Params, text_file: Path, done: tuple[Path, str], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(done[0], work)
    before = json.loads((work / "recover.json").read_text())["files"]
    (work / "recover.json").unlink()
    damage(work / "remove" / "model.safetensors", "zeroed")
    with open_job(work, settings, text_file, STAGES) as job:
        assert job.run("recover").files == before


def test_what_changed_is_named(
    settings: Params,
    text_file: Path,
    done: tuple[Path, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "work"
    shutil.copytree(done[0], work)
    recover = settings.recover.model_copy(update={"epochs": 2.0})
    text = tmp_path / "other.txt"
    text.write_text(text_file.read_text(encoding="utf-8")[1:], encoding="utf-8")
    with open_job(work, settings.model_copy(update={"recover": recover}), text, STAGES):
        left = sorted(path.name for path in work.iterdir())
    assert (
        "another value of: calibration text, recover; starting anew"
        in capsys.readouterr().err
    )
    assert left == ["key.json", "lock"]


def test_what_does_not_count_changes_nothing(
    settings: Params, text_file: Path, done: tuple[Path, str], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(done[0], work)
    idle = {"method": "none", "linear": {"ridge": 0.5}}
    elsewhere = {"gate": {"mode": "off"}, "compensate": idle}
    with open_job(work, validate(settings.model_dump() | elsewhere), text_file, STAGES):
        assert (work / "recover.json").exists()


# --- one process at a time ---


def test_a_second_compression_of_one_output_is_refused_and_deletes_nothing(
    settings: Params, text_file: Path, tmp_path: Path
) -> None:
    other = settings.model_copy(
        update={"select": settings.select.model_copy(update={"layers": 4})}
    )
    refusals: list[str] = []

    def second(job: Job) -> Trained:
        before = sorted(path.name for path in job.work.iterdir())
        with pytest.raises(UserError) as refused:
            compress(other, text_file, tmp_path / "out")
        refusals.append(str(refused.value))
        assert sorted(path.name for path in job.work.iterdir()) == before
        return Trained()

    work = tmp_path / ".out.work"
    with open_job(
        work, settings, text_file, [*STAGES, Stage("late", second, None, Trained)]
    ) as job:
        job.run_all()
        record = finish(job, tmp_path / "out", "default")
    assert refusals == [
        f"another process works in {str(work)!r}: wait for its end, or name another output"
    ]
    assert len(record.removed) == 2
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"]
        == 4
    )


def test_two_processes_never_share_a_work_folder(
    settings: Params, text_file: Path, tmp_path: Path
) -> None:
    parameters = tmp_path / "params.yaml"
    parameters.write_text(
        yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8"
    )
    command = [
        *(sys.executable, "-m", "elder", "compress", str(settings.model.name)),
        *(
            "--params",
            str(parameters),
            "--calibration",
            str(text_file),
            "--output",
            "out",
        ),
    ]
    work = tmp_path / ".out.work"
    with hold(work / "lock", "free at first"):  # as a stage of a flow would
        (work / "learn.json").write_text("of the first")
        refused = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert refused.returncode == 2
        assert "another process works in" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert (work / "learn.json").read_text() == "of the first"
        assert not (tmp_path / "out").exists()


# --- what a stage is ---


def test_a_new_stage_is_one_line(
    settings: Params, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def polish(job: Job) -> Trained:
        loaded = job.load(job.folder("remove"))
        job.keep("polish", loaded)
        return Trained(
            spent=Spent(tokens_seen=5, optimizer_steps=3), peak_memory_bytes=1 << 50
        )

    longer = (
        *STAGES,
        Stage("polish", polish, section=None, result=Trained, joins=lambda _: True),
    )
    assert processes(longer, Params())[-1] == "recover,polish"
    monkeypatch.setattr(compressing, "STAGES", longer)
    without = validate(
        settings.model_dump()
        | {"regularise": {"epochs": 0}, "recover": {"mode": "none"}}
    )
    record = compress(without, text_file, tmp_path / "out")
    assert (record.tokens_seen, record.optimizer_steps) == (5, 3)
    assert record.peak_memory_bytes == 1 << 50


def test_the_stages_and_their_processes() -> None:
    def told(tree: dict[str, dict[str, object]]) -> list[str]:
        return processes(STAGES, validate(tree))

    assert told({}) == ["learn,regularise,remove", "tune,compensate", "recover"]
    given = {"recover": {"lr": 1e-3}}
    assert told(given) == ["learn,regularise,remove,tune,compensate", "recover"]
    trained = ["learn", "regularise,remove,tune,compensate", "recover"]
    assert told(given | {"regularise": {"epochs": 1}}) == trained
    idle = {"recover": {"mode": "none"}}
    assert told(idle) == ["learn,regularise,remove,tune,compensate,recover"]
    assert {stage.section for stage in STAGES if stage.section} == set(RECIPE)
    for stage in STAGES:
        assert issubclass(stage.result, StageResult)
    with pytest.raises(
        UserError, match="there is no stage 'recove'; did you mean 'recover'"
    ):
        get_stage(STAGES, "recove")


def test_a_record_says_what_all_stages_took(
    settings: Params, text_file: Path, done: tuple[Path, str], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    shutil.copytree(done[0], work)
    with open_job(work, settings, text_file, STAGES) as job:
        record = describe(job, "default", "its name")
        results = [job.run(stage.name) for stage in STAGES]
    assert record.model.name == record.lineage.params["model"]["name"] == "its name"
    # a pass over eight blocks in one step of eight; a pass over as many in two steps of four, half of them written
    assert [(point.stage, point.step) for point in record.curve] == [
        ("regularise", 0),
        ("recover", 0),
        ("recover", 1),
    ]
    assert (record.optimizer_steps, record.tokens_seen) == (3, 2 * 8 * 32)
    assert record.tokens_generated == 8 * 32
    assert record.seconds == pytest.approx(
        sum(result.seconds for result in results), abs=1e-3
    )
