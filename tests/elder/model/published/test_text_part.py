"""The text model inside a larger one: stock, with the same numbers, and it can be made shallower."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)
from typer.testing import Result

from elder.errors import UserError
from elder.model.check import check_model
from elder.model.layers import remove_layers
from elder.model.load import load_model
from elder.model.save import save_model
from elder.params import Model

TEXT = {
    "vocab_size": 258,  # a tokenizer of Qwen3.5 adds a token to those of the tests
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
IMAGES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
GATED = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "partial_rotary_factor": 1.0,
}
FEW = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}


def gemma3() -> Any:
    text = TEXT | {"sliding_window": 16, "layer_types": ["sliding_attention"] * 5}
    text["layer_types"] = [*text["layer_types"], "full_attention"]
    config = Gemma3Config(text_config=text, vision_config=IMAGES)
    return Gemma3ForConditionalGeneration(config)


def mistral3() -> Any:
    text = TEXT | {"model_type": "mistral", "tie_word_embeddings": False}
    vision = IMAGES | {"model_type": "pixtral", "head_dim": 8}
    config = Mistral3Config(
        text_config=text, vision_config=vision, tie_word_embeddings=False
    )
    return Mistral3ForConditionalGeneration(config)


def qwen3_5() -> Any:
    kinds = ["linear_attention", "full_attention"] * 3
    # as published: a layer for speculation, which transformers neither loads nor saves
    text = TEXT | GATED | {"layer_types": kinds, "mtp_num_hidden_layers": 1}
    config = Qwen3_5Config(
        text_config=text, vision_config=FEW | {"out_hidden_size": 32}
    )
    return Qwen3_5ForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    config = Qwen2_5_VLConfig(
        text_config=TEXT, vision_config=FEW | {"out_hidden_size": 32}
    )
    return Qwen2_5_VLForConditionalGeneration(config)


@pytest.fixture
def published(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., tuple[Any, Path]]:
    """Return a tiny larger model, saved as its family publishes it."""

    def make(build: Callable[[], Any]) -> tuple[Any, Path]:
        torch.manual_seed(0)
        whole = build().eval()
        whole.generation_config.max_new_tokens = 7
        folder = tmp_path / "whole"
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return whole, folder

    return make


@pytest.mark.parametrize(
    ("build", "kind", "gone"),
    [
        (gemma3, "Gemma3ForCausalLM", [1, 3]),
        (mistral3, "MistralForCausalLM", [1, 3]),
        (qwen3_5, "Qwen3_5ForCausalLM", [2, 3]),
    ],
)
def test_the_text_part_is_stock_and_says_what_the_whole_says(
    published: Callable[..., tuple[Any, Path]],
    blocks: torch.Tensor,
    tmp_path: Path,
    build: Callable[[], Any],
    kind: str,
    gone: list[int],
) -> None:
    whole, folder = published(build)
    with pytest.raises(
        UserError,
        match="ForConditionalGeneration, not a causal .* add --set model.part=text",
    ):
        check_model(str(folder), Model(name=str(folder)))
    wanted = Model(name=str(folder), part="text", device="cpu")
    loaded = load_model(wanted)
    assert type(loaded.model).__name__ == kind
    with torch.no_grad():
        expected = whole(input_ids=blocks).logits
        assert torch.equal(loaded.model(input_ids=blocks).logits, expected)
        remove_layers(loaded.model, gone)
        shallow = loaded.model(input_ids=blocks).logits
    save_model(loaded.model, loaded.tokenizer, tmp_path / "text")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert type(again).__name__ == kind
    assert again.config.num_hidden_layers == 4
    assert not getattr(again.config, "mtp_num_hidden_layers", 0)
    assert again.generation_config.max_new_tokens == 7
    with torch.no_grad():
        assert torch.equal(again(input_ids=blocks).logits, shallow)
    kept = AutoTokenizer.from_pretrained(tmp_path / "text")
    assert kept("The sea")["input_ids"] == loaded.tokenizer("The sea")["input_ids"]
    names = load_file(tmp_path / "text" / "model.safetensors")
    assert not [name for name in names if "vis" in name or "language_model" in name]
    # what is text alone is left as it is
    assert load_model(wanted.model_copy(update={"name": str(tmp_path / "text")}))


def test_a_text_part_that_is_no_model_of_its_own(
    published: Callable[..., tuple[Any, Path]],
) -> None:
    _, folder = published(qwen2_5_vl)
    for part in ("whole", "text"):
        with pytest.raises(
            UserError, match="no causal language model of its text part's own"
        ):
            check_model(str(folder), Model(name=str(folder), part=part))


def test_a_quantised_larger_model_is_compressed(
    published: Callable[..., tuple[Any, Path]], elder: Callable[..., Result]
) -> None:
    _, folder = published(mistral3)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "language_model" in name and name.endswith("_proj.weight"):
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale
            tensors[f"{name.removesuffix('weight')}activation_scale"] = scale.clone()
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    # as Ministral 3 has it
    config["quantization_config"] = {
        "activation_scheme": "static",
        "quant_method": "fp8",
        "weight_block_size": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    done = elder(
        *("compress", "--method", "shortgpt", "--set", "model.part=text"), model=folder
    )
    assert done.exit_code == 0, done.output
    made = json.loads(Path("out/config.json").read_text())
    assert (made["architectures"], made["num_hidden_layers"]) == (
        ["MistralForCausalLM"],
        4,
    )
    assert "quantization_config" not in made
    record = json.loads(Path("out/elder.json").read_text())
    assert record["model"]["dequantised_from"] == "fp8"
    assert record["lineage"]["params"]["model"]["part"] == "text"
