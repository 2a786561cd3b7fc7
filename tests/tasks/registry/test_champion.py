"""The champion's numbers are those of its signed record; what cannot be believed or read is a fault, and no crash."""

from pathlib import Path
from typing import Any

import pytest

from elder.params import Params
from elder.record import Champion
from tasks.errors import Unreachable
from tasks.registry.champion import champion_of
from tasks.registry.client import Registry
from tasks.registry.ledger import open_ledger
from tests.tasks.registered import record, register
from tests.tasks.registry.decisions import add, promote


def champion_in(settings: Params, root: Path) -> Champion | None:
    return champion_of(open_ledger(settings, root, settings.registry.name))


def set_alias(settings: Params, version: str) -> None:
    """Make a version champion by the registry alone, as before the first decision."""
    registry = Registry(settings.registry)
    registry.client.set_registered_model_alias(registry.name, "champion", version)


def test_numbers_and_protocol_come_from_its_record(local, tmp_path):
    assert champion_in(local, tmp_path) is None
    _, published = register(local, tmp_path / "model 1", record(50.0))
    wanted = Champion.model_validate(
        {
            "version": "1",
            "url": published.url,
            "run_id": "r50",
            "perplexity": {
                "in_domain": {"perplexity": 49.0},
                "out_of_domain": {"perplexity": 50.0},
            },
            "protocol": {"evaluate": {"text": "p"}},
            "protocol_digest": "p",
        }
    )
    assert champion_in(local, tmp_path) is None
    set_alias(local, "1")
    assert champion_in(local, tmp_path) == wanted
    promote(local, tmp_path, "1")
    assert champion_in(local, tmp_path) == wanted


def test_a_record_that_cannot_be_used_is_a_fault(local, tmp_path):
    contents: dict[str, Any] = {
        "has no row of the candidate model": record(50.0),
        "there is no record.json beside its weights": None,
        "is no record of a run": {
            "lineage": {"params": {"registry": {}}},
            "run_id": "r",
        },
    }
    first = contents["has no row of the candidate model"]
    first["rows"] = first["rows"][:1]
    for number, (fault, content) in enumerate(contents.items(), start=1):
        register(local, tmp_path / f"model {number}", content)
        set_alias(local, str(number))
        champion = champion_in(local, tmp_path)
        assert champion.version == str(number)
        assert fault in champion.fault


def test_a_store_that_does_not_answer_is_no_fault_of_the_champion(
    local, tmp_path, monkeypatch
):
    add(local, tmp_path, 1)
    set_alias(local, "1")

    def away(*_: Any) -> None:
        raise Unreachable("the store does not answer")

    monkeypatch.setattr("tasks.registry.ledger.verify_version", away)
    with pytest.raises(Unreachable):
        champion_in(local, tmp_path)
