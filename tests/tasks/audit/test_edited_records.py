"""A record that holds any JSON at all: an audit says what is broken, and does not crash."""

import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from elder import params
from tasks.audit.evidence import Evidence, gather
from tasks.audit.run import CHECKS, examine
from tasks.provenance.trust import trust_of
from tests.tasks.audit.published import Version

# What somebody may write in the place of any part.
ODD: list[Any] = [None, -1, 1e308, "x", [None], {"x": {"y": []}}]
SLOW = {"signature", "source model"}  # they do not read what is edited here


@pytest.fixture
def evidence(
    settings: params.Params, root: Path, version: Version, tmp_path: Path
) -> Evidence:
    """Return evidence whose signature may be broken; otherwise nothing of it would be read."""
    (tmp_path / "place").mkdir()
    trust, waived = trust_of(settings.signing, root), frozenset({"signature"})
    name = f"{version.name}/{version.number}"
    return gather(settings, root, name, trust, tmp_path / "place", waived)


def edited(evidence: Evidence, place: Path, content: bytes) -> Evidence:
    """Return the evidence with another record.json, in a folder of its own."""
    if not place.exists():
        shutil.copytree(evidence.folder, place, copy_function=os.link)
    (place / "record.json").unlink()
    (place / "record.json").write_bytes(content)
    return dataclasses.replace(evidence, folder=place)


def faults(evidence: Evidence) -> dict[str, str]:
    findings = [
        examine(name, check, evidence)
        for name, check in CHECKS.items()
        if name not in SLOW
    ]
    return {one.name: one.detail for one in findings if one.ok is False}


def test_any_value_in_any_place_is_named(evidence: Evidence, tmp_path: Path) -> None:
    """Each part is replaced at every key of the record and of what its lists and objects hold first."""
    tree = json.loads((evidence.folder / "record.json").read_text(encoding="utf-8"))
    assert faults(
        edited(evidence, tmp_path / "same", json.dumps(tree).encode())
    ).keys() <= {
        # written in another way
        *("files", "digest", "bill of materials", "registration"),
    }
    tried = 0
    for key, value in tree.items():
        for number, odd in enumerate(ODD):
            changed = copy.deepcopy(tree)
            deeper = isinstance(value, dict) and value and number % 2
            if deeper:
                changed[key][next(iter(value))] = odd
            else:
                changed[key] = odd
            if changed == tree:
                continue
            content = json.dumps(changed).encode()
            named = faults(edited(evidence, tmp_path / "edited", content))
            assert "record in MLflow" in named, (key, odd)
            assert not any("Traceback" in detail for detail in named.values())
            tried += 1
    assert tried > 100


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "record.json is not valid JSON"),
        (b"[]", "record.json is no record of a run: its content"),
        (b"7", "record.json is no record of a run: its content"),
        (b"\xff\xfe", "record.json is not valid JSON"),
        (b"[" * 100_000, "record.json is nested deeper than"),
        (b'{"run_id": ' + b"9" * 5000 + b"}", "record.json is not valid JSON"),
        (b'{"run_id": 7}', "record.json is no record of a run: model: Field required"),
    ],
    ids=["empty", "list", "number", "no text", "deep", "huge integer", "not whole"],
)
def test_what_is_no_record_is_named(
    evidence: Evidence, tmp_path: Path, content: bytes, named: str
) -> None:
    found = faults(edited(evidence, tmp_path / "edited", content))
    for name in ("bill of materials", "gate", "layer weights", "tags", "commit"):
        assert named in found[name]
