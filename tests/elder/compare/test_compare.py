"""Measuring rows: resumed where it was cut, not by two at once, measured anew where anything changed."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from elder.cli.comparison import numbers, read_preset, read_sizes
from elder.compare import run as compare
from elder.compare.plan import Measurement, Size, plan
from elder.compare.result import read_result
from elder.compare.rows import parse_rows
from elder.compare.run import LOCK, Failure, Told, attempt, failures_by_name, run_all
from elder.compression.job import Job
from elder.errors import UserError
from elder.params import Params
from elder.settings import validate


@pytest.fixture
def base(model_folder: Path, text_file: Path) -> Params:
    return Params.model_validate(
        {
            "model": {"name": str(model_folder)},
            "calibration": {"source": str(text_file), "samples": 8, "seq_len": 32},
            "recover": {"epochs": 1, "lr": 1e-3},
            "evaluate": {
                "in_domain": str(text_file),
                "out_of_domain": str(text_file),
                "max_tokens": 640,
                "tasks": (),
            },
        }
    )


def planned(base: Params, methods: str, ratio: float = 1 / 3) -> list[Measurement]:
    return plan(
        parse_rows(methods), base, [Size(ratio=ratio)], [0], [base.calibration.source]
    )


def run(measurements: list[Measurement], folder: Path) -> list[Failure]:
    return run_all(measurements, folder, lambda: None, here)


def here(rows: Sequence[Measurement], folder: Path, told: Told) -> None:
    """Measure in this process, which is faster."""
    for one in rows:
        told(one, attempt(one, folder))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the rows that were really measured."""
    found: list[str] = []
    real = compare.measure

    def measure(one: Measurement, folder: Path) -> None:
        found.append(one.row)
        real(one, folder)

    monkeypatch.setattr(compare, "measure", measure)
    return found


def test_a_row_holds_what_the_table_needs_and_its_models_are_gone(
    base: Params, tmp_path: Path
) -> None:
    measurements = planned(base, "shortgpt+distil")
    assert run(measurements, tmp_path) == []
    dense, row = (read_result(one, tmp_path) for one in measurements)
    assert (dense.name, dense.removed, dense.tokens_seen) == ("dense", [], 0)
    assert (row.name, len(row.removed), row.num_layers, row.tokens) == (
        "shortgpt+distil",
        2,
        6,
        256,
    )
    assert row.tokens_seen == 256  # one pass over 8 x 32
    assert row.parameters < dense.parameters
    assert (
        row.perplexity["in_domain"].perplexity
        > dense.perplexity["in_domain"].perplexity
    )
    # 640 tokens in blocks of 32, as in calibration
    assert row.losses["in_domain"].shape == (20,)
    assert row.losses["in_domain"].mean() == pytest.approx(
        row.perplexity["in_domain"].nll, rel=1e-6
    )
    assert list((tmp_path / "work").iterdir()) == []


def test_what_is_measured_is_not_measured_again(
    base: Params, tmp_path: Path, counted: list[str]
) -> None:
    run(planned(base, "last"), tmp_path)
    run(planned(base, "last,random"), tmp_path)
    assert counted == ["dense", "last", "random"]


def test_rows_that_mean_the_same_are_measured_once(
    base: Params, tmp_path: Path, counted: list[str]
) -> None:
    measurements = planned(base, "last,default[select.method=last,recover.mode=none]")
    run(measurements, tmp_path)
    assert counted == ["dense", "last"]
    first, second = (read_result(one, tmp_path) for one in measurements[1:])
    assert (first.name, second.name) == (
        "last",
        "default[select.method=last,recover.mode=none]",
    )
    assert first.perplexity == second.perplexity


def test_any_change_that_matters_is_measured_anew(
    base: Params, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slugs(settings: Params = base, **more: Any) -> tuple[str, str]:
        dense, row = planned(settings, "last", **more)
        return dense.slug, row.slug

    first = slugs()
    assert slugs() == first
    trained = base.model_copy(
        update={"recover": base.recover.model_copy(update={"epochs": 2})}
    )
    assert slugs(trained) != first  # the recipe
    assert slugs(trained)[0] == first[0]  # but the dense model is not recovered
    assert slugs(ratio=0.5)[1] != first[1]
    limit = base.model_copy(
        update={"evaluate": base.evaluate.model_copy(update={"max_tokens": 320})}
    )
    assert slugs(limit)[0] != first[0]
    speed = base.model_copy(
        update={"speed": base.speed.model_copy(update={"batch": 3})}
    )
    assert slugs(speed) == first
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text() + "More.")
    (_, row) = plan(parse_rows("last"), base, [Size(ratio=1 / 3)], [0], [str(other)])
    assert row.slug != first[1]
    monkeypatch.setattr("elder.fingerprint.package_version", lambda name: "another")
    assert slugs()[0] != first[0]


def test_rows_that_choose_alike_share_the_choice(
    base: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(planned(base, "sleb"), tmp_path)
    learnt: list[str] = []
    real = Job.run

    def watch(job: Job, stage: str) -> dict[str, Any]:
        if stage == "learn" and not (job.work / "learn.json").exists():
            learnt.append(job.work.name)
        return real(job, stage)

    monkeypatch.setattr(Job, "run", watch)
    measurements = planned(base, "sleb,sleb+train,shortgpt")
    run(measurements, tmp_path)
    assert [name.split("-")[0] for name in learnt] == ["shortgpt"]
    first, second = (read_result(one, tmp_path) for one in measurements[1:3])
    assert first.removed == second.removed


def test_a_folder_in_other_hands_is_left_alone(
    base: Params, tmp_path: Path, counted: list[str]
) -> None:
    measurements = planned(base, "last")
    with (
        FileLock(tmp_path / LOCK),
        pytest.raises(UserError, match=r"another comparison is at work .* launch\.ray"),
    ):
        run(measurements, tmp_path)
    assert counted == []
    assert run(measurements, tmp_path) == []
    assert counted == ["dense", "last"]


def test_one_row_that_cannot_be_measured_does_not_stop_the_others(
    base: Params, tmp_path: Path
) -> None:
    measurements = planned(base, "sleb[select.protect=[0,1,2,3,4]],last")
    ((name, reason),) = failures_by_name(run(measurements, tmp_path)).items()
    assert name == "sleb[select.protect=[0,1,2,3,4]], seed 0"
    assert "protect fewer" in reason
    assert measurements[2].path(tmp_path).exists()


def test_a_row_that_does_not_fit_into_memory_is_one_sentence(
    base: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compare.measure

    def measure(one: Measurement, folder: Path) -> None:
        if one.row == "sleb":
            torch.empty(10**15)
        real(one, folder)

    monkeypatch.setattr(compare, "measure", measure)
    measurements = planned(base, "sleb,last")
    ((_, reason),) = failures_by_name(run(measurements, tmp_path)).items()
    assert reason.startswith("the row sleb does not fit into memory (")
    assert measurements[2].path(tmp_path).exists()


def test_a_missing_text_is_refused_before_any_work(base: Params) -> None:
    with pytest.raises(UserError, match=r"no text file 'nowhere.txt'"):
        plan(parse_rows("last"), base, [Size(ratio=0.5)], [0], ["nowhere.txt"])


def test_the_papers_protocol_is_one_preset() -> None:
    chosen, values = read_preset("paper")
    found = validate(values)
    assert chosen["methods"] == "elder,sleb,shortgpt,default"
    assert (found.calibration.source, found.calibration.config) == (
        "Salesforce/wikitext",
        "wikitext-2-raw-v1",
    )
    assert (
        found.calibration.samples,
        found.calibration.seq_len,
        found.evaluate.max_tokens,
    ) == (128, 2048, None)
    assert found.evaluate.tasks == (
        "piqa",
        "winogrande",
        "hellaswag",
        "arc_easy",
        "arc_challenge",
    )
    elder = parse_rows("elder")[0].settings(found)
    learning = elder.select.settings_of("elder")
    assert (learning.lambda1, elder.regularise.lambda2, elder.regularise.lr) == (
        5e-3,
        1e-3,
        2e-5,
    )
    with pytest.raises(UserError, match="no preset 'papr'; did you mean 'paper'"):
        read_preset("papr")


def test_sizes_and_numbers() -> None:
    base = Params()
    assert read_sizes("3,6", None, base) == [Size(layers=3), Size(layers=6)]
    assert read_sizes(None, "0.25,0.5", base) == [Size(ratio=0.25), Size(ratio=0.5)]
    assert read_sizes(None, None, base) == [Size(layers=None, ratio=0.25)]
    assert numbers("--seeds", "2,0,2", int) == [2, 0]
    for option, text, kind in (
        ("--ratios", "0.5,1.5", float),
        ("--seeds", "-1", int),
        ("--layers", "a", int),
    ):
        with pytest.raises(UserError, match=option):
            numbers(option, text, kind)


def test_the_command_writes_table_and_chart_and_one_json_object(
    base: Params, tmp_path: Path
) -> None:
    sets = {
        "calibration.samples": 8,
        "calibration.seq_len": 32,
        "evaluate.in_domain": base.evaluate.in_domain,
        "evaluate.out_of_domain": base.evaluate.out_of_domain,
        "evaluate.max_tokens": 640,
        "evaluate.tasks": "[]",
    }
    command = [
        sys.executable,
        "-m",
        "elder",
        "compare",
        "--methods",
        "last",
        "--layers",
        "2",
        "--json",
    ]
    command += [
        "--model",
        base.model.name,
        "--calibration",
        base.calibration.source,
        "--output",
        "out",
    ]
    command += [
        word for key, value in sets.items() for word in ("--set", f"{key}={value}")
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["name"] for row in found["rows"]] == ["dense", "last"]
    assert found["rows"][1]["removed"] == [[5, 4]]
    assert found["failed"] == {}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"table.md", "table.csv", "table.json", "chart-1.png"} <= names
    assert "2 of 6 layers removed (33%)" in (tmp_path / "out" / "table.md").read_text()
