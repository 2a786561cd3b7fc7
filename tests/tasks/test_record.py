"""A run's record is settled once, and all copies of it are the same bytes."""

import json
from pathlib import Path

import pytest

from elder.record import (
    CompressionRecord,
    DataFacts,
    Lineage,
    Record,
    Row,
    Speed,
    Verdict,
    plain,
    read_record,
)
from elder.settings import validate
from tasks.record import Findings, settle, with_outcome
from tasks.record_file import write_record
from tasks.run.run import Run
from tasks.store.base import Published
from tests.elder.records import compress_record, make_record

MADE = make_record()


def findings(seconds: float = 2.04) -> Findings:
    return Findings(
        made=CompressionRecord.model_validate(compress_record()),
        data=DataFacts(source={"kind": "file"}),
        origin=Lineage(git_commit="c0ffee", data={"calibration.txt": "9b"}),
        rows=[Row.model_validate(row) for row in MADE["rows"]],
        speed=Speed.model_validate(MADE["speed"]),
        champion=None,
        verdict=Verdict.model_validate(MADE["gate"]),
        energy={"kwh": 0.5},
        seconds=seconds,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    settings = validate(
        {
            "model": {"name": "models/as-named"},
            "registry": {"tracking_uri": "postgresql://me:hunter2@db/x"},
        }
    )
    folder = tmp_path / "runs" / "r1"
    folder.mkdir(parents=True)
    return Run(tmp_path, folder, settings, "default", "build/models/x", None)


def test_a_record_holds_what_all_tasks_found(run: Run) -> None:
    record = settle.fn(run, findings())
    assert (record.run_id, record.seconds, record.model.name) == (
        "r1",
        2.0,
        "models/as-named",
    )
    assert plain(record.candidate) == MADE["rows"][1]
    assert record.lineage.git_commit == "c0ffee"
    assert record.lineage.packages == {"torch": "2.13.0"}  # of the compression
    assert record.lineage.params["model"]["name"] == "models/as-named"
    assert record.energy == {"kwh": 0.5}
    assert "hunter2" not in run.record.read_text()


def test_what_is_published_is_settled_once(run: Run) -> None:
    first = settle.fn(run, findings(seconds=1))
    assert settle.fn(run, findings(seconds=9)) == first
    run.record.write_text("")  # as a power cut leaves it
    assert settle.fn(run, findings(seconds=9)).seconds == 9


def test_all_copies_of_a_record_are_the_same_bytes(run: Run, tmp_path: Path) -> None:
    record = settle.fn(run, findings())
    write_record(record, tmp_path / "copy.json")
    text = run.record.read_bytes()
    assert (tmp_path / "copy.json").read_bytes() == text
    read = read_record(json.loads(text), "it")
    write_record(read, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == text


def test_a_number_that_is_not_finite_is_none_in_json(run: Run, tmp_path: Path) -> None:
    rows = [row | {} for row in MADE["rows"]]
    rows[1] = rows[1] | {
        "perplexity": {"out_of_domain": {"perplexity": float("inf")}},
    }
    record = Record.model_validate(MADE | {"rows": rows})
    write_record(record, tmp_path / "record.json")
    tree = json.loads(
        (tmp_path / "record.json").read_text(), parse_constant=pytest.fail
    )
    assert tree["rows"][1]["perplexity"]["out_of_domain"]["perplexity"] is None


def test_the_outcome_is_no_part_of_what_is_published(run: Run) -> None:
    record = settle.fn(run, findings())
    published = Published(url="store/x", digest="d" * 64, files={}, uploaded_bytes=5)
    told = plain(with_outcome(record, published, "3", run.report))
    assert told["artifact"] == {"url": "store/x", "digest": "d" * 64, "files": {}}
    assert (told["model_version"], told["report"]) == ("3", str(run.report))
    assert not {"artifact", "model_version", "report"} & set(
        json.loads(run.record.read_text())
    )
