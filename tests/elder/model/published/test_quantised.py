"""Quantised checkpoints: dequantised where that can be done, and no trace is left; refused at once elsewhere."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaForCausalLM,
)
from typer.testing import Result

from elder.errors import UserError
from elder.model.check import check_model
from elder.model.load import load_model
from elder.model.save import save_model
from elder.params import Model

FP8 = torch.float8_e4m3fn
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
DEEPSEEK = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [32, 32],
}
PER_TENSOR = {"activation_scheme": "static", "quant_method": "fp8"}
GPT_OSS = {
    "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    "quant_method": "mxfp4",
}


@pytest.fixture
def copy_of(model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of the tiny model with its tensors changed and fields added to its config.json."""

    def make(change: Callable[[dict], dict] | None = None, **fields: Any) -> Path:
        folder = tmp_path / "given"
        shutil.copytree(model_folder, folder)
        if change:
            tensors = change(load_file(folder / "model.safetensors"))
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def in_blocks(weight: torch.Tensor, size: int = 32) -> tuple[torch.Tensor, ...]:
    """Quantise as DeepSeek does: a scale for each block, the last of which may be short."""
    rows, columns = weight.shape
    scales = torch.empty(math.ceil(rows / size), math.ceil(columns / size))
    codes = torch.empty(rows, columns, dtype=FP8)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            here = slice(i * size, i * size + size), slice(j * size, j * size + size)
            scales[i, j] = weight[here].abs().max() / 448
            codes[here] = (weight[here] / scales[i, j]).to(FP8)
    return codes, scales


def blockwise(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            made[name], made[f"{name}_scale_inv"] = in_blocks(tensor)
        else:
            made[name] = tensor.to(torch.bfloat16)
    return made


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Quantise as vLLM's tools do: one scale for all, and others for what enters a layer."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            scale = tensor.abs().max() / 448
            owner = name.removesuffix("weight")
            made[name] = (tensor / scale).to(FP8)
            made[f"{owner}weight_scale"] = scale
            made[f"{owner}input_scale"] = torch.tensor(0.5)
        else:
            made[name] = tensor.to(torch.bfloat16)
    return made


def kept_whole(folder: Path, dequantised_from: str, tmp_path: Path) -> Any:
    """Load, save and load again in plain transformers: the same numbers, and no trace of codes; returns the model."""
    loaded = load_model(Model(name=str(folder), device="cpu"))
    assert (loaded.dequantised_from, loaded.dtype) == (dequantised_from, torch.bfloat16)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    assert "quant" not in (tmp_path / "saved" / "config.json").read_text()
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    return loaded.model


@pytest.mark.parametrize(
    ("quantise", "told"), [(blockwise, DEEPSEEK), (whole, PER_TENSOR)]
)
def test_fp8_is_dequantised(
    trained_model: LlamaForCausalLM,
    copy_of: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    quantise: Callable,
    told: dict,
) -> None:
    # 48 rows of an inner layer are a block and a half
    folder = copy_of(quantise, quantization_config=told, dtype="bfloat16")
    model = kept_whole(folder, "fp8", tmp_path)
    assert (
        "is quantised with fp8: its weights are dequantised" in capsys.readouterr().err
    )
    for name, before in trained_model.state_dict().items():
        after = model.state_dict()[name].float()
        if not name.endswith("_proj.weight"):
            assert torch.equal(after, before.to(torch.bfloat16).float())
            continue
        # e4m3 keeps 3 bits of a fraction, or a 512th of its scale, and bfloat16 rounds once more
        bound = before.abs() / 16 + before.abs().max() / 448 / 512 + before.abs() / 256
        assert bool(((after - before).abs() <= bound).all())
        assert not torch.equal(after, before.to(torch.bfloat16).float())


def packed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise (experts, in, out) to MXFP4: two codes a byte, a power of two for each 32 along ``in``."""
    groups = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    power = torch.ceil(torch.log2(groups.abs().amax(-1) / 6))
    scaled = groups / torch.exp2(power)[..., None]
    codes = (scaled.abs()[..., None] - FP4).abs().argmin(-1) + 8 * (scaled < 0)
    codes = codes.to(torch.uint8)
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    return blocks, (power + 127).to(torch.uint8)


def test_mxfp4_is_dequantised(model_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = GptOssConfig(vocab_size=257, pad_token_id=0, **sizes, **heads, **experts)
    dense = GptOssForCausalLM(config).to(torch.bfloat16)
    folder = tmp_path / "given"
    shutil.copytree(model_folder, folder)
    dense.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [one for one in tensors if one.endswith("experts.down_proj")] + [
        one for one in tensors if one.endswith("experts.gate_up_proj")
    ]:
        blocks, scales = packed(tensors.pop(name).float())
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    fields["quantization_config"] = GPT_OSS
    (folder / "config.json").write_text(json.dumps(fields))

    model = kept_whole(folder, "mxfp4", tmp_path)
    for name, before in dense.state_dict().items():
        after = model.state_dict()[name]
        if not name.endswith(("experts.down_proj", "experts.gate_up_proj")):
            assert torch.equal(after, before)
            continue
        # codes are 2 apart at most, in units of the group's power of two, which is less than a third of its largest
        bound = before.float().abs().amax(1, keepdim=True) / 3
        assert bool(((after - before).float().abs() <= bound).all())
        likeness = torch.cosine_similarity(
            after.float().flatten(), before.float().flatten(), dim=0
        )
        assert 0.98 < likeness < 1


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"bits": 4, "group_size": 64}, "a method without a name"),
    ],
)
def test_what_cannot_be_dequantised_is_refused_before_any_work(
    copy_of: Callable[..., Path], told: dict, name: str
) -> None:
    def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | {"model.layers.0.mlp.up_proj.qweight": torch.zeros(8).byte()}

    folder = copy_of(packed, quantization_config=told)
    sentence = f"is quantised with {name}, whose codes cannot be turned back .* names as base_model"
    with pytest.raises(UserError, match=sentence):
        check_model(str(folder), Model(name=str(folder)))


@pytest.mark.parametrize("kind", [FP8, torch.uint8])
def test_codes_that_the_configuration_does_not_speak_of(
    copy_of: Callable[..., Path], kind: torch.dtype
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        owner = "model.layers.1.mlp.up_proj."
        codes = tensors[f"{owner}weight"].to(kind)
        scale = torch.ones(1)
        return tensors | {f"{owner}weight": codes, f"{owner}weight_scale": scale}

    folder = copy_of(change)
    with pytest.raises(UserError, match=r"holds codes of type \w+ in model.layers.1"):
        check_model(str(folder), Model(name=str(folder)))


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        (lambda scale: None, r"up_proj\.weight have no scales beside them"),
        (lambda scale: scale[:, :1].expand(2, 3).clone(), r"fits no \(48, 32\) codes"),
    ],
)
def test_scales_that_are_lost_or_do_not_fit(
    copy_of: Callable[..., Path], lost: Callable, sentence: str
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        made = blockwise(tensors)
        name = "model.layers.1.mlp.up_proj.weight_scale_inv"
        scales = lost(made.pop(name))
        return made if scales is None else made | {name: scales}

    folder = copy_of(change, quantization_config=DEEPSEEK)
    with pytest.raises(UserError, match=sentence):
        load_model(Model(name=str(folder), device="cpu"))


def test_a_compression_of_an_fp8_checkpoint(
    elder: Callable[..., Result], copy_of: Callable[..., Path]
) -> None:
    folder = copy_of(blockwise, quantization_config=DEEPSEEK, dtype="bfloat16")
    done = elder("compress", "--method", "shortgpt", model=folder)
    assert done.exit_code == 0, done.output
    made = json.loads(Path("out/elder.json").read_text())
    assert made["model"]["dequantised_from"] == "fp8"
    assert "quantization_config" not in json.loads(Path("out/config.json").read_text())
    weights = load_file("out/model.safetensors")
    assert max(weight.abs().max() for weight in weights.values()) < 10
