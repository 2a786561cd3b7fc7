"""A saved model is loaded where this project is not: a sound one works, and what is wrong is said in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from elder.evaluation.plain_transformers import CODE, load_in_plain_transformers


def spoil_nothing(folder: Path) -> None:
    pass


def ask_for_another_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def make_a_weight_infinite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (spoil_nothing, None),
        (
            ask_for_another_layer,
            "weights do not fit the configuration: missing ['model.layers.6.",
        ),
        (make_a_weight_infinite, "its logits are not finite"),
    ],
)
def test_a_saved_model_works_or_its_fault_is_named(
    model_folder: Path, tmp_path: Path, spoil, fault
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    spoil(folder)
    trial = load_in_plain_transformers(folder)
    assert trial.ok is (fault is None), trial
    assert (trial.fault or "").startswith(fault or "")


def test_this_project_is_out_of_reach_there() -> None:
    block = CODE.partition("import torch")[0]
    done = subprocess.run(
        [sys.executable, "-c", f"{block}import elder"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ModuleNotFoundError: import of elder halted" in done.stderr
