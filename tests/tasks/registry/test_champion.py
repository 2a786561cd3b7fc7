"""The champion's numbers are read from the record beside its weights; what cannot be read is a fault, and no crash."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from elder.params import Store
from elder.record import Champion
from tasks.errors import Unreachable
from tasks.registry.champion import champion_of
from tasks.store.open import open_store

ROW = {
    "name": "default",
    "kind": "candidate",
    "perplexity": {"out_of_domain": {"perplexity": 50.0, "stderr": 0.5}},
    "protocol": {"limit": None},
    "protocol_digest": "d" * 64,
    "seconds": 3.0,
}
RECORD = {
    "run_id": "20261124-021500-ab12cd34",
    "created": "2026-11-24T02:15:00+00:00",
    "model": {"name": "models/dense"},
    "removed": [1],
    "rows": [{"name": "dense", "kind": "dense"}, ROW],
    "gate": {"mode": "on", "passed": True},
}
NO_CANDIDATE = RECORD | {"rows": RECORD["rows"][:1]}
NO_NUMBER = RECORD | {"rows": [ROW | {"perplexity": {"in_domain": {}}}]}


def champion_at(url: str | None) -> Champion | None:
    return champion_of(Mock(holder=lambda _: url and ("3", url)), Store())


@pytest.fixture
def published(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(RECORD), encoding="utf-8")
    return open_store(str(tmp_path / "store")).publish(folder, "tiny").url


def test_there_may_be_none() -> None:
    assert champion_at(None) is None


def test_numbers_and_protocol_come_from_its_record(published: str) -> None:
    assert champion_at(published) == Champion.model_validate(
        {
            "version": "3",
            "url": published,
            "run_id": RECORD["run_id"],
            "perplexity": ROW["perplexity"],
            "protocol": ROW["protocol"],
            "protocol_digest": ROW["protocol_digest"],
        }
    )


def test_a_record_that_is_not_what_was_published(published: str) -> None:
    path = Path(published) / "record.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace("50.0", "99.0"), encoding="utf-8"
    )
    found = champion_at(published)
    fault = "its record.json is not what the manifest says"
    assert found == Champion(version="3", url=published, fault=fault)


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"config.json": "{}"}, "there is no record.json beside its weights"),
        ({"record.json": "{"}, "its record.json is not valid JSON"),
        (
            {"record.json": json.dumps(NO_CANDIDATE)},
            "has no row of the candidate model",
        ),
        (
            {"record.json": json.dumps(NO_NUMBER)},
            "is no record of a run: rows.0.perplexity.in_domain.perplexity: Field required",
        ),
        ({"record.json": "[]"}, "its record.json is no record of a run"),
        ({"record.json": "[" * 100_000}, "its record.json is nested deeper than"),
    ],
)
def test_a_record_that_cannot_be_used(files: dict, fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    found = champion_at(open_store(str(tmp_path / "store")).publish(folder, "tiny").url)
    assert found is not None
    assert fault in found.fault


def test_a_model_that_is_gone_is_a_fault_and_a_store_that_is_away_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = champion_at(str(tmp_path / "store" / "models" / "tiny" / "a"))
    assert "is no published model" in found.fault

    def away(*_: Any) -> None:
        raise Unreachable("the store does not answer")

    monkeypatch.setattr("tasks.registry.champion.stored_record", away)
    with pytest.raises(Unreachable):
        champion_at("anywhere")
