"""The measurement at real size, with a tiny shape: each stage's seconds, and what of them is the model's own."""

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import real_size  # noqa: E402

STAGES = ["learn", "regularise", "remove", "tune", "compensate", "recover"]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Measure a tiny model with the default."""
    for name in ("WIKITEXT", "NOVELS", "TOKENIZER"):
        monkeypatch.setattr(real_size, name, ROOT / getattr(real_size, name))
    monkeypatch.setattr(real_size, "prepare_libraries", lambda: None)
    texts = {
        "in_domain": str(ROOT / "data/in_domain.txt"),
        "out_of_domain": str(ROOT / "data/held_out.txt"),
    }
    part = {"evaluate": {**texts, "max_tokens": 256, "tasks": []}}
    monkeypatch.setitem(real_size.PARTS, "tiny", real_size.PARTS["tiny"] | part)
    monkeypatch.chdir(tmp_path)
    measured = real_size.measure("tiny")
    assert not list((tmp_path / "build/real-size").glob("*.work"))
    return {"weights_bytes": real_size.weights_bytes("tiny"), **measured}


def test_each_stage_has_its_seconds_and_what_they_went_to(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {row["stage"]: row for row in found["stages"]}
    assert list(rows) == STAGES
    trained = rows["recover"]
    assert 0 < trained["model"] < trained["seconds"]
    assert trained["optimiser"] + trained["files"] < trained["seconds"]
    # bfloat16: embedding and head, six layers, norms
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16
    exact = 2 * (2 * 4096 * 16 + 6 * layer + 16)
    assert exact <= found["weights_bytes"] < exact + 10_000
    assert real_size.peak_memory(found) > 10**8
    about = {"command": "it", "device": "cpu", "processors": 2}
    found["date"] = "today"
    parts = {"tiny": found, "pair": found | {"seconds_of_two": 1.0}}
    monkeypatch.setitem(real_size.TOLD, "tiny", "- tiny: it")
    page = real_size.page({**about, "torch": "2", "parts": parts})
    assert "| tiny | today | " in page
    quality = found["quality"]
    assert len(quality["removed"]) == 2
    assert quality["in_domain"] > 1
    assert f"{quality['out_of_domain']:.1f}\non a novel" in page
    assert "at the same time take 1 s" in page
