"""Reproduction in parts: what counts as the same, whose code is run, and where data with a digest come from."""

import copy
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from elder.errors import UserError
from elder.params import Params
from elder.record import Lineage, Record
from tasks.audit import reproduce
from tasks.audit.reproduce import Comparison, Made, compare_with_record
from tasks.audit.rerun import Rerun, bring_data, code_of
from tasks.provenance.lineage import hardware

HERE = {
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    **{"device": "cpu", "threads": 1, "platform": "Linux", "python": "3.11.7"},
    "hardware": hardware(),
}
RECORD: dict[str, Any] = {
    "run_id": "20261124-021500-ab12cd34",
    "removed": [2, 1],
    "sha256": "a" * 64,
    "created": "2026-11-24T02:15:00+00:00",
    "model": {"name": "models/dense"},
    "gate": {"mode": "off", "passed": True},
    "rows": [
        {
            "name": "default",
            "kind": "candidate",
            "perplexity": {"in_domain": {"perplexity": 100.0}},
        }
    ],
    "lineage": HERE,
}


def hold(found: float | None = 100.0, **again: Any) -> Comparison:
    made = {"removed": [2, 1], "sha256": "a" * 64, "lineage": HERE} | again
    record = Record.model_validate(RECORD)
    return compare_with_record(record, Made.model_validate(made), {"in_domain": found})


def test_on_the_same_machine_everything_must_be_the_same() -> None:
    same = hold()
    assert (same.ok, same.same_layers, same.same_weights, same.same_machine) == (
        True,
        True,
        True,
        True,
    )
    assert same.metrics["in_domain"].model_dump() == {
        "recorded": 100.0,
        "found": 100.0,
        "tolerance": 1e-6,
        "within": True,
    }
    assert not hold(sha256="b" * 64).ok
    assert not hold(removed=[1, 2]).ok
    assert not hold(found=100.01).ok
    assert not hold(found=None).ok  # it was finite, and is not any more


def test_elsewhere_layers_must_be_the_same_and_perplexities_near() -> None:
    other = copy.deepcopy(HERE) | {
        "packages": {"torch": "2.14.0", "transformers": "5.23.0"}
    }
    found = hold(found=101.5, sha256="b" * 64, lineage=other)
    assert (found.ok, found.same_weights, found.same_machine) == (True, False, False)
    assert found.notes == ["not as in the run: torch 2.14.0, was 2.13.0"]
    assert not hold(found=103.0, lineage=other).ok  # 2 % is the most
    assert not hold(removed=[2, 3], lineage=other).ok


def test_an_output_is_filled_by_one_process_alone(tmp_path: Path) -> None:
    output, model = tmp_path / "again", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with reproduce._claimed(output):
        with pytest.raises(UserError, match="another process makes a model again"):
            reproduce.make_again(Params(), tmp_path, "tiny@champion", output)
        reproduce._keep(model, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "model"]
    assert [path.name for path in output.iterdir()] == ["config.json"]


def test_what_came_into_an_output_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    output, model = tmp_path / "again", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with reproduce._claimed(output):
        output.mkdir()
        (output / "mine").touch()
        with pytest.raises(UserError, match="already holds"):
            reproduce._keep(model, output)
    assert [path.name for path in output.iterdir()] == ["mine"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a git repository with two commits of one file."""
    root = tmp_path / "project"
    root.mkdir()
    commit(root, "first", "--quiet")
    return root


def commit(root: Path, content: str, *flags: str) -> str:
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (root / "code.py").write_text(content)
    subprocess.run([*git, "add", "code.py"], check=True)
    subprocess.run(
        [*git, "commit", "-m", content, *flags], check=True, capture_output=True
    )
    return subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_recorded_commit_is_run_in_a_worktree_that_goes_away(
    repository: Path, tmp_path: Path
) -> None:
    first = subprocess.run(
        ["git", "-C", repository, "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    commit(repository, "second")
    place = tmp_path / "code"
    with code_of(repository, Lineage(git_commit=first, git_clean=True), place) as (
        code,
        notes,
    ):
        assert (code / "code.py").read_text() == "first"
        assert notes == []
    assert not place.exists()
    with code_of(repository, Lineage(git_commit=first, git_clean=False), place) as (
        _,
        notes,
    ):
        assert notes == [
            "the run had changes that were not committed: its commit alone was run"
        ]
    listed = subprocess.run(
        ["git", "-C", repository, "worktree", "list"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert listed.stdout.count("\n") == 1
    assert (repository / "code.py").read_text() == "second"


def test_without_the_commit_the_present_code_is_run_and_that_is_said(
    repository: Path, tmp_path: Path
) -> None:
    for lineage, why in [
        (Lineage(git_commit="0" * 40), "is not known here"),
        (Lineage(), "the record names no commit"),
    ]:
        with code_of(repository, lineage, tmp_path / "code") as (code, notes):
            assert code == repository
            assert why in notes[0]
            assert "the present code was run instead" in notes[0]


def test_data_come_by_digest_from_the_folder_the_cache_or_the_remote(
    tmp_path: Path,
) -> None:
    root, remote = tmp_path / "project", tmp_path / "remote"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        f"[core]\n    no_scm = true\n    remote = there\n['remote \"there\"']\n    url = {remote}\n"
    )
    content = {
        "calibration.safetensors": b"blocks",
        "in_domain.txt": b"in",
        "out_of_domain.txt": b"out",
    }
    md5 = {name: hashlib.md5(data).hexdigest() for name, data in content.items()}
    outs = [
        {"path": f"build/data/{name}", "md5": md5[name], "size": len(data)}
        for name, data in content.items()
    ]
    record = RECORD | {
        "data": {"stages": {"all": {"outs": outs}}},
        "lineage": {"data": md5, "params": {"model": {}}, "threads": 1},
    }
    cache = root / ".dvc" / "cache" / "files" / "md5"
    places = {
        "calibration.safetensors": remote
        / "files"
        / "md5"
        / md5["calibration.safetensors"][:2],
        "in_domain.txt": cache / md5["in_domain.txt"][:2],
    }
    for name, folder in places.items():
        folder.mkdir(parents=True)
        (folder / md5[name][2:]).write_bytes(content[name])
    (root / "build" / "data").mkdir(parents=True)
    (root / "build" / "data" / "out_of_domain.txt").write_bytes(b"out")
    (root / "build" / "data" / "in_domain.txt").write_bytes(b"changed since")

    def rerun() -> Rerun:
        return Rerun(Record.model_validate(record), root, root, Params())

    told = bring_data(rerun(), tmp_path / "data")
    assert {
        name: (tmp_path / "data" / name).read_bytes() for name in content
    } == content
    assert told["calibration.safetensors"] == "DVC's remote"
    assert (
        told["in_domain.txt"]
        == told["out_of_domain.txt"]
        == "build/data or DVC's cache"
    )
    assert not list((root / "build" / "reproduce").glob("*"))

    record["lineage"]["data"] = md5 | {"in_domain.txt": "0" * 32}
    outs[1]["md5"] = "0" * 32
    with pytest.raises(UserError, match="making the data ended with status 1"):
        bring_data(rerun(), tmp_path / "more")
