"""Loading: what does not fit, what no machine could build, and what cannot be read."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from elder.errors import UserError
from elder.model.load import load_model
from elder.params import Model


@pytest.mark.parametrize("moment", ["from_pretrained", "to"])
def test_a_model_that_does_not_fit_is_said_in_a_sentence(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        )

    monkeypatch.setattr(LlamaForCausalLM, moment, full)
    sentence = r"^the model of '.*tiny' does not fit into memory \(8 bytes more were asked for\); make it"
    with pytest.raises(UserError, match=sentence):
        load_model(Model(name=str(model_folder), device="cpu"))


def configured(base: Path, folder: Path, **fields: Any) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("num_hidden_layers", 50_000_000, 10_000),
        ("num_attention_heads", 10**9, 10_000),
        ("hidden_size", 1 << 40, 1 << 24),
        ("vocab_size", 1 << 60, 1 << 24),
    ],
)
def test_what_no_machine_could_build_is_refused_at_once(
    model_folder: Path, tmp_path: Path, field: str, value: int, limit: int
) -> None:
    folder = configured(model_folder, tmp_path / "bad", **{field: value})
    started = time.monotonic()
    with pytest.raises(UserError, match=f"asks for {field} = {value}; at most {limit} can be"):
        load_model(Model(name=str(folder)))
    assert time.monotonic() - started < 5


def test_a_count_in_a_nested_configuration_is_looked_at_too(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "bad", text_config={"n_layer": 10_001})
    with pytest.raises(UserError, match="asks for n_layer = 10001; at most 10000"):
        load_model(Model(name=str(folder)))


def test_a_configuration_that_is_nested_too_deep(model_folder: Path, tmp_path: Path) -> None:
    folder = configured(model_folder, tmp_path / "bad")
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(
        UserError, match=r"bad/config\.json is nested deeper than the 100 levels"
    ):
        load_model(Model(name=str(folder)))


def test_weights_of_more_layers_than_the_configuration_names(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "bad", num_hidden_layers=5)
    with pytest.raises(
        UserError, match=r"has 5 layers by its configuration, and .*layers\.5\."
    ):
        load_model(Model(name=str(folder)))


def test_a_weight_beside_the_layers_that_nothing_asks_for_is_left_out(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    extra = tensors["model.norm.weight"].clone()
    save_file(tensors | {"model.other.weight": extra}, folder / "model.safetensors")
    assert load_model(Model(name=str(folder))).num_layers == 6
