"""Folders whose weights are not what config.json says: named before any work, and used where nothing is in doubt."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from elder.errors import UserError
from elder.model.load import load_model
from elder.model.save import save_model
from elder.params import Model

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture
def given(model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of the tiny model with its tensors changed and fields added to its config.json."""

    def make(change: Change | None = None, **fields: Any) -> Path:
        folder = tmp_path / "given"
        shutil.copytree(model_folder, folder)
        weights = folder / "model.safetensors"
        if change:
            save_file(change(load_file(weights)), weights, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def load(folder: Path, **wanted: Any) -> Any:
    return load_model(Model(name=str(folder), device="cpu", **wanted))


def with_biases(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    biases = {
        name.replace("weight", "bias"): torch.ones(len(tensor))
        for name, tensor in tensors.items()
        if "q_proj" in name
    }
    return tensors | biases


def test_weights_that_the_configuration_has_no_place_for_are_refused(
    given: Callable[..., Path],
) -> None:
    folder = given(with_biases)
    with pytest.raises(
        UserError,
        match=r"hold 6 tensors .* such as model\.layers\.0\.self_attn\.q_proj\.bias",
    ):
        load(folder)


def test_what_older_versions_stored_beside_weights_is_left(
    given: Callable[..., Path],
) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = given(lambda tensors: tensors | {name: torch.ones(4)})
    assert load(folder).num_layers == 6


def test_weights_of_another_shape_are_named_with_both(
    given: Callable[..., Path],
) -> None:
    folder = given(intermediate_size=80)
    with pytest.raises(
        UserError, match=r"holds model\..*mlp.* of shape \(.*asks for \(.*80"
    ):
        load(folder)


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8"])
def test_a_quantisation_that_is_only_left_over_is_left_out(
    given: Callable[..., Path], capsys: pytest.CaptureFixture[str], method: str
) -> None:
    folder = given(quantization_config={"quant_method": method, "load_in_4bit": False})
    loaded = load(folder)
    assert (
        f"quantised with {method}, and its weights are plain" in capsys.readouterr().err
    )
    assert loaded.dequantised_from is None
    assert not hasattr(loaded.model.config, "quantization_config")
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(loaded.model.state_dict()[name], stored[name])


def test_the_reason_is_said_whole(given: Callable[..., Path]) -> None:
    folder = given(rms_norm_eps="1e-05")
    with pytest.raises(UserError, match=r"'rms_norm_eps'.* expected float, got str"):
        load(folder)


def test_vocabulary_and_merges_are_a_tokenizer(tmp_path: Path) -> None:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        ["It was a day"], 300, special_tokens=["<|endoftext|>"]
    )
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_model(str(tmp_path))
    assert (
        load(tmp_path).tokenizer.decode(load(tmp_path).tokenizer("It was")["input_ids"])
        == "It was"
    )
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        load(tmp_path)


def test_an_adapter_that_was_trained_with_added_tokens_brings_its_embeddings(
    model_folder: Path, tmp_path: Path
) -> None:
    base = LlamaForCausalLM.from_pretrained(model_folder)
    count = base.config.vocab_size
    base.resize_token_embeddings(count + 3)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config)
    adapted.peft_config["default"].base_model_name_or_path = str(model_folder)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    merged = load(tmp_path / "adapter", adapter="merge").model
    wanted = adapted.merge_and_unload().get_input_embeddings().weight
    assert merged.get_input_embeddings().weight.shape[0] == count + 3
    assert torch.equal(merged.get_input_embeddings().weight, wanted)


def test_weights_may_be_read_by_whoever_reads_the_rest(
    given: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load(given())
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    modes = {path.stat().st_mode for path in (tmp_path / "saved").iterdir()}
    assert len(modes) == 1
