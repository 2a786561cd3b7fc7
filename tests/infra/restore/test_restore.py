"""A registry that is lost comes back from the store as it was, and a store from the folders of runs."""

import shutil
from pathlib import Path

import pytest

from elder.errors import UserError
from infra import restore as script
from infra.restore import numbers, restore
from tasks.registry.client import Registry
from tasks.registry.history import Entry
from tests.infra.restore.lost import Make, run, snapshot
from tests.tasks.registry.decisions import decisions, promote, roll_back


def test_the_whole_story_comes_back_and_a_second_time_changes_nothing(
    settings_with: Make, tmp_path: Path
) -> None:
    before = settings_with("before")
    assert run(before, tmp_path, 1) == "1"
    assert run(before, tmp_path, 2) == "2"
    assert run(before, tmp_path, 3, gate="refused") is None
    assert run(before, tmp_path, 4, gate="dry-run: refused") == "3"
    promote(before, tmp_path, "1")
    second = promote(before, tmp_path, "2")
    last = roll_back(before, tmp_path)
    told = snapshot(before)
    assert told["aliases"] == {"champion": 1, "challenger": 3}
    assert sorted(told["tags"]) == [
        "history/000001",
        "history/000002",
        "history/000003",
    ]
    assert told["versions"][1][2]["promoted_from"] == "2"
    assert (
        told["versions"][2][2]["promoted_at"],
        told["versions"][2][2]["archived_at"],
    ) == (second.at, last.at)
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
    # date -d 2026-11-24T02:02:00Z +%s, in ms
    assert made.start_time == made.end_time == 1795485720000
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
        (
            {"d": "2", "gone": "1"},
            [3, 4, 5, 2],
        ),  # what was version 1 has no bytes any more
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
    # the way out that docs/disaster-recovery.md shows
    client.delete_registered_model("tiny")
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
    promote(settings, tmp_path, "1")
    told = snapshot(settings)
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(tmp_path / "before" / "mlartifacts")
    folders = sorted((tmp_path / "runs").glob("*/tiny"))
    assert [script.publish(folder, settings, tmp_path) for folder in folders] == [
        told["versions"][number][1] for number in (1, 2)
    ]
    lines, fault = restore(settings, tmp_path)
    assert "the registry tells of decision 1 on tiny" in fault
    assert lines[-1] == (
        "champion: version 1, by the registry alone: the store has no history of tiny; elder promote tiny 1"
        " --accept-history begins a new one"
    )
    again = snapshot(settings)
    assert again == told

    new = promote(settings, tmp_path, "1", accept_history=True)
    assert (new.number, new.previous) == (2, None)
    assert "it was cut" in str(new.accepted)
    assert decisions(settings, tmp_path) == ([new], [])
    assert restore(settings, tmp_path)[1] == ""
    found = snapshot(settings)
    assert found["tags"]["history/000001"] == told["tags"]["history/000001"]
    assert found["aliases"] == told["aliases"]


def test_damaged_models_are_left_out_and_named(
    settings_with: Make, tmp_path: Path
) -> None:
    before = settings_with("before")
    for number in (1, 2, 3, 4):
        run(before, tmp_path, number)
    places = {
        number: Path(version[1])
        for number, version in snapshot(before)["versions"].items()
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
