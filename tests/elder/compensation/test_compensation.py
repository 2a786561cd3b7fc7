"""Compensation after a removal: each method by hand, and what it must leave as it was."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from elder.compensation import COMPENSATIONS, NONE, Pruned, compensate
from elder.compensation import linear as linear_module
from elder.compensation.base import Gap, gaps, register
from elder.compensation.linear import LinearSettings, Moments, find_site, solve
from elder.compensation.magnitude import measure
from elder.errors import UserError
from elder.model.forward import block_losses, logits_of
from elder.model.layers import find_layers, remove_layers
from elder.model.load import weights_digest
from elder.model.save import save_model

METHODS = ["merge", "magnitude", "linear"]
LAYERS = 6
SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
}
COMMON = SIZES | {"intermediate_size": 48, "max_position_embeddings": 64}
OPT = SIZES | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
ROUTED = COMMON | {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
GROUPS = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", COMMON),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": 257,
            "n_embd": 32,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 64,
        },
    ),
    "opt": ("OPT", OPT),
    "phi": ("Phi", COMMON),
    "gpt-neox": ("GPTNeoX", COMMON),
    "falcon": ("Falcon", SIZES),
    "bloom": (
        "Bloom",
        {"vocab_size": 257, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    ),
    "granite": ("Granite", COMMON | {"residual_multiplier": 0.22}),
    "mixtral": ("Mixtral", COMMON | {"num_local_experts": 4, "num_key_value_heads": 4}),
    "qwen3-moe": (
        "Qwen3Moe",
        ROUTED | {"num_experts": 4, "head_dim": 8, "num_key_value_heads": 4},
    ),
    "gpt-oss": (
        "GptOss",
        ROUTED | {"num_local_experts": 4, "head_dim": 8, "num_key_value_heads": 4},
    ),
    "deepseek-v3": ("DeepseekV3", ROUTED | LATENT | GROUPS),
    "opt-post-norm": ("OPT", OPT | {"do_layer_norm_before": False}),
    "gemma2": ("Gemma2", COMMON | {"head_dim": 8, "num_key_value_heads": 2}),
    "olmo2": ("Olmo2", COMMON),
}
NORM_AFTER = ["opt-post-norm", "gemma2", "olmo2"]  # after a projection


def build(family: str) -> Any:
    """Make a tiny model whose every layer matters."""
    kind, values = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(
        **values, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def pruned(
    dense: Any,
    removed: tuple[int, ...],
    blocks: torch.Tensor,
    method: str,
    **settings: Any,
) -> Pruned[Any]:
    """Take layers out of a copy of a model, and say how to mend it."""
    model = copy.deepcopy(dense)
    remove_layers(model, removed)
    entry = COMPENSATIONS.get(method)
    own = entry.settings(**settings) if entry else None
    return Pruned(model, dense, removed, blocks, own, batch=4)


# --- the gaps and the registry ---


def test_the_gaps_of_a_removal_by_hand() -> None:
    # layers 0 1 2 3 4 5 6 7 without 0, 3, 4 and 7: 1, 2, 5 and 6 become 0, 1, 2 and 3
    assert gaps((4, 7, 0, 3), 8) == [Gap(0, 1, 0), Gap(3, 5, 2), Gap(7, 8, 4)]
    assert Gap(3, 5, 2).layers == [3, 4]


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"no compensation 'liner'; did you mean 'linear'\? valid: linear, .*none",
    ):
        COMPENSATIONS.find("liner")
    for taken in ("linear", NONE):
        with pytest.raises(ValueError, match="registered already"):
            register(taken)(lambda _: {})


def test_none_does_nothing(llama: Callable, blocks: torch.Tensor) -> None:
    job = pruned(llama(3), (1,), blocks, NONE)
    before = weights_digest(job.model)
    assert compensate(NONE, job) == {"method": NONE}
    assert weights_digest(job.model) == before


# --- all of them ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_keeps_dtype_and_shapes_and_repeats_itself(
    trained: Any,
    text_blocks: torch.Tensor,
    tmp_path: Path,
    method: str,
    dtype: torch.dtype,
) -> None:
    dense = trained
    for parameter in (
        dense.parameters()
    ):  # and no buffer: a loaded model keeps those of the positions in float32
        parameter.data = parameter.data.to(dtype)
    untouched = weights_digest(dense)
    jobs = [pruned(dense, (1, 3, 4), text_blocks[:24], method) for _ in range(2)]
    before = weights_digest(jobs[0].model)
    records = [compensate(method, job) for job in jobs]
    assert records[0] == records[1]
    assert json.loads(json.dumps(records[0], allow_nan=False)) == records[0]
    assert [gap["removed"] for gap in records[0]["gaps"]] == [[1], [3, 4]]
    assert weights_digest(jobs[0].model) == weights_digest(jobs[1].model) != before
    assert weights_digest(dense) == untouched
    assert {p.dtype for p in jobs[0].model.parameters()} == {dtype}
    losses = [block_losses(jobs[0].model, text_blocks[21:24], 4).mean().item()]
    assert losses == pytest.approx(
        [records[0]["held_out_loss"]["after"]]
    )  # the last eighth of the blocks
    save_model(jobs[0].model, Nameless(), tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(
        logits_of(again, text_blocks[:2]), logits_of(jobs[0].model, text_blocks[:2])
    )


class Nameless:
    """Stands for a tokenizer that has nothing to save."""

    def save_pretrained(self, _: Path) -> None:
        pass


# --- merge ---


def test_merging_by_hand(llama: Callable, blocks: torch.Tensor) -> None:
    dense = llama(4)
    values = [[[1.0, 2], [3, 4]], [[2.0, 2], [2, 2]], [[0.0, 1], [0, 1]]]
    for layer, value in zip(find_layers(dense), values, strict=False):
        layer.mlp.down_proj.weight.data[:2, :2] = torch.tensor(value)
        layer.input_layernorm.weight.data.fill_(value[0][0])
    job = pruned(dense, (2, 1), blocks, "merge")
    last = copy.deepcopy(find_layers(job.model)[1].state_dict())
    record = compensate("merge", job)
    # theta_0 + (theta_1 - theta_0) + (theta_2 - theta_0), all against the first: theta_1 + theta_2 - theta_0
    first = find_layers(job.model)[0]
    assert first.mlp.down_proj.weight[:2, :2].tolist() == [[1, 1], [-1, -1]]
    assert first.input_layernorm.weight.tolist() == [1.0] * 32  # 2 + 0 - 1
    assert all(
        torch.equal(value, last[name])
        for name, value in find_layers(job.model)[1].state_dict().items()
    )
    assert record["gaps"] == [{"removed": [1, 2], "into": 0}]
    assert record["tokens"] == 0


@pytest.mark.parametrize("method", ["merge", "linear"])
def test_layers_with_none_before_them_are_just_gone(
    llama: Callable, blocks: torch.Tensor, method: str
) -> None:
    job = pruned(llama(4), (0, 1), blocks, method)
    before = weights_digest(job.model)
    record = compensate(method, job)
    assert [(gap["removed"], gap["into"]) for gap in record["gaps"]] == [([0, 1], None)]
    assert weights_digest(job.model) == before


def test_layers_of_other_shapes_do_not_merge(blocks: torch.Tensor) -> None:
    dense = build("deepseek-v3")
    kinds = [type(layer.mlp).__name__ for layer in find_layers(dense)]
    index = next(
        i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]
    )  # the first layer with experts
    job = pruned(dense, (index,), blocks, "merge")
    before = weights_digest(job.model)
    sentence = (
        f"layer {index} cannot be merged into layer {index - 1}: their weights differ"
    )
    with pytest.raises(UserError, match=sentence):
        compensate("merge", job)
    assert weights_digest(job.model) == before


# --- magnitude ---


def test_alpha_is_the_ratio_of_mean_norms(llama: Callable, blocks: torch.Tensor) -> None:
    dense = llama(4)
    states = dense(
        input_ids=blocks, output_hidden_states=True
    ).hidden_states  # 0: embeddings; i: entering layer i
    norms = [state.norm(dim=-1).mean().item() for state in states]
    found = measure(dense, [Gap(0, 1, 0), Gap(2, 3, 1)], blocks, batch=4)
    assert found == pytest.approx([norms[1] / norms[0], norms[3] / norms[2]], rel=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - NORM_AFTER))
def test_folding_alpha_equals_scaling_the_stream(
    family: str, blocks: torch.Tensor
) -> None:
    job = pruned(build(family), (0, 3), blocks, "magnitude")
    plain = copy.deepcopy(job.model)
    record = compensate("magnitude", job)
    scales = [gap["scale"] for gap in record["gaps"]]
    hooks = [  # without layers 0 and 3, layer 1 is the first, and layer 4 the third
        find_layers(plain)[place].register_forward_pre_hook(
            scaling(scale), with_kwargs=True
        )
        for place, scale in zip((0, 2), scales, strict=True)
    ]
    expected = logits_of(plain, blocks)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(
        logits_of(job.model, blocks),
        expected,
        rtol=1e-2,
        atol=1e-2 * expected.std().item(),
    )
    assert (
        logits_of(plain, blocks) - expected
    ).std() > 0.1 * expected.std()  # it did make a difference
    for name in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(
            getattr(job.model, name)().weight, getattr(plain, name)().weight
        )


def scaling(scale: float) -> Callable:
    """Return a hook that multiplies the hidden state entering a layer."""

    def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (args[0] * scale, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] * scale}

    return hook


@pytest.mark.parametrize("family", NORM_AFTER)
@pytest.mark.parametrize("method", ["magnitude", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_with_a_norm_after_the_projection_are_refused(
    family: str, method: str, dtype: torch.dtype, blocks: torch.Tensor
) -> None:
    job = pruned(build(family).to(dtype), (2, 3), blocks, method)
    before = weights_digest(job.model)
    with pytest.raises(
        UserError,
        match=r"ForCausalLM cannot be compensated by .*; set compensate.method to",
    ):
        compensate(method, job)
    assert weights_digest(job.model) == before


def test_a_model_without_a_last_norm_is_refused(
    llama: Callable, blocks: torch.Tensor
) -> None:
    dense = llama(4)
    remove_layers(dense, (3,))
    job = pruned(dense, (1,), blocks, "magnitude")
    job.model.model.norm = nn.Identity()
    with pytest.raises(UserError, match="it has no norm after its last layer"):
        compensate("magnitude", job)


# --- linear ---


def test_the_ridge_by_hand() -> None:
    # one dimension: A = 4, B = 2, and a pull of 1 x mean diagonal 4: (4 + 4) t = 2 + 4
    one = Moments(
        torch.tensor([[4.0]]).double(),
        torch.tensor([[2.0]]).double(),
        rest=3.0,
        target=2.0,
    )
    assert solve(one, 1.0).item() == pytest.approx(0.75)
    assert solve(one, 1e-9).item() == pytest.approx(0.5)
    # (t A t - 2 t B + rest) / target = (2.25 - 3 + 3) / 2
    assert one.error(torch.tensor([[0.75]]).double()) == pytest.approx(1.125)


def test_a_planted_map_is_found(llama: Callable, blocks: torch.Tensor) -> None:
    plain, dense = llama(3), llama(3)
    first, second = find_layers(dense)[:2]
    planted = torch.eye(32) + 0.5 * torch.randn(
        32, 32, generator=torch.Generator().manual_seed(0)
    )
    first.mlp.down_proj.weight.data = (
        planted.T @ first.mlp.down_proj.weight.data
    )  # y T in place of y
    for projection in (second.self_attn.o_proj, second.mlp.down_proj):
        projection.weight.data.zero_()  # the layer that goes does nothing, so T is all that is missing
    remove_layers(plain, (1,))
    settings = LinearSettings(ridge=1e-9)
    job = Pruned(plain, dense, (1,), blocks, settings, batch=8)
    record = compensate("linear", job)
    assert record["gaps"][0]["folded"]
    assert record["gaps"][0]["held_out_error"]["before"] > 0.1
    assert record["gaps"][0]["held_out_error"]["after"] < 1e-8
    assert torch.allclose(
        find_layers(plain)[0].mlp.down_proj.weight, first.mlp.down_proj.weight, atol=1e-3
    )
    assert torch.allclose(logits_of(plain, blocks), logits_of(dense, blocks), atol=1e-2)


def test_it_brings_the_states_and_the_loss_nearer(
    trained: Any, text_blocks: torch.Tensor
) -> None:
    fit, unseen = text_blocks[:160], text_blocks[-60:]
    job = pruned(trained, (2, 3), fit, "linear")
    plain = copy.deepcopy(job.model)
    record = compensate("linear", job)

    def error(model: Any, ids: torch.Tensor) -> float:
        """Return the distance of the state entering layer 2 from the dense one entering layer 4."""
        found, wanted = (
            m(input_ids=ids, output_hidden_states=True).hidden_states
            for m in (model, trained)
        )
        return ((found[2] - wanted[4]).square().sum() / wanted[4].square().sum()).item()

    (gap,) = record["gaps"]
    assert (gap["removed"], gap["into"], gap["folded"]) == ([2, 3], 1, True)
    held = fit[-20:]  # the last eighth
    expected = {"before": error(plain, held), "after": error(job.model, held)}
    assert gap["held_out_error"] == pytest.approx(expected, rel=1e-3)
    assert error(job.model, unseen) < 0.9 * error(plain, unseen)
    before, after = (
        block_losses(model, unseen, 20).mean().item() for model in (plain, job.model)
    )
    assert after < before
    assert record["held_out_loss"]["after"] < record["held_out_loss"]["before"]


def test_a_map_that_does_not_help_is_left_out(
    llama: Callable, blocks: torch.Tensor
) -> None:
    job = pruned(
        llama(4), (1, 2), blocks, "linear", ridge=1e-6
    )  # random layers, and few tokens: learnt by heart
    before = weights_digest(job.model)
    (gap,) = compensate("linear", job)["gaps"]
    assert gap["held_out_error"]["after"] > gap["held_out_error"]["before"]
    assert not gap["folded"]
    assert weights_digest(job.model) == before


@pytest.mark.parametrize(
    "module", [nn.Linear(3, 2), nn.Linear(3, 2, bias=False), Conv1D(2, 3)]
)
def test_folding_maps_what_a_projection_puts_out(module: Any) -> None:
    x, matrix = torch.randn(5, 3), torch.tensor([[1.0, 2.0], [0.0, -1.0]]).double()
    expected = module(x) @ matrix.float()
    linear_module.fold(module, matrix)
    assert torch.allclose(module(x), expected, atol=1e-6)


SITES = {
    "llama": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "opt": "fc2",
    "phi": "mlp.fc2",
    "gpt-neox": "mlp.dense_4h_to_h",
    "falcon": "mlp.dense_4h_to_h",
    "bloom": "mlp.dense_4h_to_h",
    "deepseek-v3": "mlp.shared_experts.down_proj",
}


@pytest.mark.parametrize("family", SITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_projection_that_a_layer_ends_with(
    family: str, dtype: torch.dtype, blocks: torch.Tensor
) -> None:
    model = build(family).to(dtype)
    site = find_site(model, 3, blocks[:1])
    assert site.module is find_layers(model)[3].get_submodule(SITES[family])
    assert site.gain == pytest.approx(1, abs=0.01)


def test_a_residual_multiplier_is_the_gain(blocks: torch.Tensor) -> None:
    model = build("granite")
    assert find_site(model, 1, blocks[:1]).gain == pytest.approx(
        model.config.residual_multiplier, rel=1e-4
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_experts_take_no_linear_map(family: str, blocks: torch.Tensor) -> None:
    with pytest.raises(
        UserError, match="layer 1 of the shallower model does not end with one projection"
    ):
        compensate("linear", pruned(build(family), (2, 3), blocks, "linear"))
