"""The bill of materials: valid by the library's own validator, the same each time, and telling of each edit."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from elder.record import Record
from tasks.provenance.bom import BOM, bom, faults, write_bom
from tasks.store.manifest import describe

RECORD: dict[str, Any] = {
    "run_id": "20261124-021500-ab12cd34",
    "created": "2026-11-24T02:15:00+00:00",
    "model": {
        "name": "models/tiny",
        "revision": None,
        "digest": "d" * 64,
        "num_layers": 3,
    },
    "method": "default",
    "removed": [1],
    "parameters_after": 4096,
    "rows": [
        {
            "name": "default",
            "kind": "candidate",
            "perplexity": {
                "in_domain": {"perplexity": 21.5, "stderr": 0.25},
                "out_of_domain": {"perplexity": 30.0},
            },
            "tasks": {"blimp": {"metric": "acc", "value": 0.75, "stderr": 0.01}},
        }
    ],
    "gate": {"mode": "on", "passed": True, "rules": []},
    "energy": {"kwh": 0.25},
    "lineage": {
        "git_commit": "abc123",
        "data": {"calibration.safetensors": "a" * 32, "pins/text.json": "b" * 32},
        "installed": {"torch": "2.13.0", "safetensors": "0.8.0"},
    },
}

TYPED = Record.model_validate(RECORD)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "record.json").write_text(json.dumps(RECORD))
    write_bom(folder, TYPED, leave_out=("model.sig",))
    return folder


def test_it_is_a_valid_ml_bom(model: Path) -> None:
    text = (model / BOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    tree = json.loads(text)
    component = tree["metadata"]["component"]
    assert component["type"] == "machine-learning-model"
    assert component["name"] == "tiny-minus-1"
    assert component["pedigree"]["ancestors"][0]["name"] == "models/tiny"
    # sha256 of the seven bytes "weights"
    sha256 = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    hashes = {part["name"]: part["hashes"] for part in component["components"]}
    assert hashes["model.safetensors"] == [{"alg": "SHA-256", "content": sha256}]
    assert set(hashes) == {"model.safetensors", "record.json"}
    found = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert found[0] == {
        "type": "perplexity",
        "slice": "default, in_domain",
        "value": "21.5",
        "confidenceInterval": {"lowerBound": "21.25", "upperBound": "21.75"},
    }
    assert "confidenceInterval" not in found[1]
    assert found[2]["value"] == "0.75"
    assert {part["name"] for part in tree["components"]} == {
        *("torch", "safetensors"),
        *("calibration.safetensors", "pins/text.json"),
    }
    named = {
        one["ref"] for one in component["modelCard"]["modelParameters"]["datasets"]
    }
    assert named == {"data:calibration.safetensors", "data:pins/text.json"}
    assert tree["metadata"]["timestamp"] == RECORD["created"]


def test_the_same_record_and_files_give_the_same_bytes(model: Path) -> None:
    before = (model / BOM).read_bytes()
    (model / "model.sig").write_text("written after it")
    write_bom(model, TYPED, leave_out=("model.sig",))
    assert (model / BOM).read_bytes() == before
    files = {name: file for name, file in describe(model).items() if name != BOM}
    (model / "record.json").write_text("{}")
    other = {name: file for name, file in describe(model).items() if name != BOM}
    assert (
        json.loads(bom(TYPED, files))["serialNumber"]
        != json.loads(bom(TYPED, other))["serialNumber"]
    )


def test_each_edit_is_named(model: Path) -> None:
    files = describe(model)
    text = (model / BOM).read_text()
    assert faults(text, TYPED, files) == []
    assert faults("{", TYPED, files) == ["it cannot be read"]
    assert faults(text.replace("21.5", "11.5"), TYPED, files) == [
        "its metadata differ from what the record says"
    ]
    assert faults(text.replace("2.13.0", "2.13.1"), TYPED, files) == [
        "its components differ from what the record says"
    ]
    sha256 = files["model.safetensors"].sha256
    assert faults(text.replace(sha256, "0" * 64), TYPED, files) == [
        "it gives another sha256 for model.safetensors"
    ]
    fewer = {name: file for name, file in files.items() if name != "model.safetensors"}
    assert faults(text, TYPED, fewer) == [
        "it lists model.safetensors, which is not there"
    ]
    changed = copy.deepcopy(RECORD)
    changed["rows"][0]["tasks"]["blimp"]["value"] = 0.8
    assert faults(text, Record.model_validate(changed), files) == [
        "its metadata differ from what the record says"
    ]
