"""What a result depends on: the parts that count, those that do not, and how a difference is named."""

import os
from pathlib import Path
from typing import Any

import pytest

from elder.errors import UserError
from elder.fingerprint import (
    Fingerprint,
    calibration_parts,
    folder_digest,
    model_parts,
    protocol_parts,
    recipe_of,
    text_digest,
)
from elder.params import Params
from elder.settings import validate

UNLIKE = {  # a value for each section that is not its default
    "model": {"dtype": "bfloat16"},
    "calibration": {"samples": 7},
    "select": {"layers": 3},
    "regularise": {"epochs": 2.0},
    "compensate": {"method": "linear"},
    "recover": {"epochs": 1.0},
    "evaluate": {"limit": 5},
    "speed": {"batch": 3},
    "gate": {"mode": "off"},
    "store": {"url": "elsewhere"},
    "registry": {"name": "other"},
    "notify": {"events": ["failure"]},
    "signing": {"private_key": None},
    "energy": {"measure": False},
    "launch": {"processes": 2},
}
COUNTS = {
    "model",
    "calibration",
    "select",
    "regularise",
    "compensate",
    "recover",
    "evaluate",
}


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    for name in ("in", "out"):
        (tmp_path / f"{name}.txt").write_text(
            f"text {name} of domain", encoding="utf-8"
        )
    return {"in_domain": "in.txt", "out_of_domain": "out.txt"}


def settings(texts: dict[str, str], **sections: dict[str, Any]) -> Params:
    evaluate = {**texts, "tasks": []} | sections.pop("evaluate", {})
    return validate({"evaluate": evaluate, **sections})


def whole(wanted: Params, root: Path) -> Fingerprint:
    return Fingerprint(
        recipe_of(wanted)
        | model_parts(wanted)
        | calibration_parts(wanted)
        | protocol_parts(wanted, root)
    )


@pytest.mark.parametrize("section", UNLIKE)
def test_just_recipe_model_calibration_and_protocol_count(
    section: str, texts: dict[str, str], tmp_path: Path
) -> None:
    # a new section must say whether it counts
    assert set(UNLIKE) == set(Params.model_fields)
    usual = whole(settings(texts), tmp_path)
    changed = whole(settings(texts, **{section: UNLIKE[section]}), tmp_path)
    expected = [section] if section in COUNTS else []
    assert usual.differences(changed) == expected
    assert (usual.digest == changed.digest) == (section not in COUNTS)
    assert len(usual.short) == 12


def test_the_settings_of_what_was_not_chosen_do_not_count(
    texts: dict[str, str],
) -> None:
    usual = Fingerprint(recipe_of(settings(texts)))
    linear = {"linear": {"ridge": 0.5}}
    other = Fingerprint(recipe_of(settings(texts, compensate=linear)))
    assert usual.digest == other.digest
    chosen = [
        Fingerprint(recipe_of(settings(texts, compensate={"method": "linear", **own})))
        for own in ({}, linear)
    ]
    assert chosen[0].differences(chosen[1]) == ["compensate"]


def test_where_layers_lie_does_not_count(texts: dict[str, str], tmp_path: Path) -> None:
    judged = {"elder": {"written": 0}}
    usual = whole(settings(texts, select=judged), tmp_path)
    for select in (judged, {}):  # nothing is written by layers that lie elsewhere
        elsewhere = whole(
            settings(texts, select=select | {"offload": "disk"}), tmp_path
        )
        assert elsewhere.digest == usual.digest
    assert usual.differences(whole(settings(texts), tmp_path)) == ["select"]


def test_texts_count_by_what_they_hold(texts: dict[str, str], tmp_path: Path) -> None:
    usual = whole(settings(texts), tmp_path)
    (tmp_path / "copy.txt").write_bytes((tmp_path / "in.txt").read_bytes())
    moved = whole(settings(texts | {"in_domain": "copy.txt"}), tmp_path)
    assert moved.digest == usual.digest
    (tmp_path / "out.txt").write_text("another text", encoding="utf-8")
    assert usual.differences(whole(settings(texts), tmp_path)) == ["text out of domain"]
    (tmp_path / "out.txt").unlink()
    with pytest.raises(UserError, match=r"there is no text file '.*out\.txt'"):
        protocol_parts(settings(texts), tmp_path)
    with pytest.raises(UserError, match="there is no text file"):
        text_digest(tmp_path / "out.txt")


def test_task_data_count_where_there_are_tasks(
    texts: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "one.yaml").write_text("task: one", encoding="utf-8")
    wanted = settings(texts, evaluate={"tasks": ["one"], "task_data": "tasks"})
    before = Fingerprint(protocol_parts(wanted, tmp_path))
    (tmp_path / "tasks" / ".cache").write_text("does not count", encoding="utf-8")
    assert Fingerprint(protocol_parts(wanted, tmp_path)).digest == before.digest
    (tmp_path / "tasks" / "one.yaml").write_text("task: two", encoding="utf-8")
    assert before.differences(Fingerprint(protocol_parts(wanted, tmp_path))) == [
        "task data"
    ]
    with pytest.raises(
        UserError, match=r"no folder of task data .*; set evaluate\.task_data"
    ):
        folder_digest(tmp_path / "none")


def test_a_models_weights_count_and_its_card_does_not(
    texts: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "README.md"):
        (folder / name).write_bytes(b"1")
    wanted = settings(texts, model={"name": str(folder)})
    before = Fingerprint(model_parts(wanted))
    (folder / "README.md").write_bytes(b"a better card")
    assert Fingerprint(model_parts(wanted)).digest == before.digest
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert before.differences(Fingerprint(model_parts(wanted))) == ["model files"]


def test_auto_is_the_device_that_it_means_here(
    texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cpu = Fingerprint(model_parts(settings(texts, model={"device": "cpu"})))
    here = Fingerprint(model_parts(settings(texts)))
    assert here.digest == cpu.digest
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cpu.differences(Fingerprint(model_parts(settings(texts)))) == ["model"]


def test_a_calibration_text_counts_by_what_it_holds(
    texts: dict[str, str], tmp_path: Path
) -> None:
    wanted, text = settings(texts), tmp_path / "calibration.txt"
    absent = Fingerprint(calibration_parts(wanted, text))
    text.write_text("it was", encoding="utf-8")
    present = Fingerprint(calibration_parts(wanted, text))
    assert absent.differences(present) == ["calibration text"]
    assert (present | {"more": 1}).differences(present) == ["more"]
