"""Removal and steering of layers, over the families of transformers that are cheap to build."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from elder.errors import UserError
from elder.layers import LayerControl, find_layers, hidden_of, remove_layers, skipping, text_config

BASE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4}
COMMON = BASE | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
LONG = BASE | {"intermediate_size": 48, "max_position_embeddings": 64}
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 6, "n_head": 4, "n_positions": 64}
NEO = {"vocab_size": 300, "hidden_size": 32, "num_layers": 6, "num_heads": 4, "max_position_embeddings": 64}
# name -> (configuration, its values); sliding windows are shorter than the text, so that they matter
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", COMMON),
    "Mistral": ("MistralConfig", COMMON | {"sliding_window": 8}),
    "Qwen2": ("Qwen2Config", COMMON | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    "Qwen3": ("Qwen3Config", COMMON | {"head_dim": 8}),
    "Gemma2": ("Gemma2Config", COMMON | {"head_dim": 8, "sliding_window": 8}),
    "Gemma3": ("Gemma3TextConfig", COMMON | {"head_dim": 8, "sliding_window": 8}),
    "Phi": ("PhiConfig", LONG),
    "Phi3": ("Phi3Config", COMMON),
    "OPT": ("OPTConfig", BASE | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}),
    "GPTNeoX": ("GPTNeoXConfig", LONG),
    "GPTNeo": ("GPTNeoConfig", NEO | {"attention_types": [[["global", "local"], 3]], "window_size": 8}),
    "GPT2": ("GPT2Config", GPT2),
    "Falcon": ("FalconConfig", BASE),
    "Bloom": ("BloomConfig", {"vocab_size": 300, "hidden_size": 32, "n_layer": 6, "n_head": 4}),
    "Olmo2": ("Olmo2Config", COMMON),
    "Mixtral": ("MixtralConfig", COMMON | {"num_local_experts": 4}),
    "Granite": ("GraniteConfig", COMMON),
    "SmolLM3": ("SmolLM3Config", COMMON | {"no_rope_layer_interval": 2}),
}
GONE = [1, 4]


def build(config_class: str, values: dict[str, Any]) -> Any:
    config = getattr(transformers, config_class)(**values, **IDS)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # large, so that every layer matters
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def dense(request: pytest.FixtureRequest) -> Any:
    return build(*FAMILIES[request.param])


@pytest.fixture
def family(dense: Any) -> Any:
    return copy.deepcopy(dense)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(5, 290, (2, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def test_removing_nothing_changes_nothing(family: Any, ids: torch.Tensor) -> None:
    before, config = logits(family, ids), family.config.to_dict()
    remove_layers(family, [])
    assert torch.equal(logits(family, ids), before)
    assert family.config.to_dict() == config


def test_removing_equals_skipping(family: Any, ids: torch.Tensor) -> None:
    whole = logits(family, ids)
    with skipping(family, GONE):
        skipped = logits(family, ids)
    assert torch.equal(logits(family, ids), whole)
    remove_layers(family, GONE)
    assert (logits(family, ids) - skipped).abs().max() <= 1e-6
    assert (skipped - whole).abs().max() > 0.1  # the layers did matter


def test_count_lists_and_indices_agree_after_removal(family: Any) -> None:
    config = text_config(family)
    before = {k: v for k, v in vars(config).items() if isinstance(v, list) and len(v) == 6}
    remove_layers(family, GONE)
    layers = find_layers(family)
    assert config.num_hidden_layers == len(layers) == 4
    for key, old in before.items():
        assert getattr(config, key) == [old[index] for index in (0, 2, 3, 5)], key
    for place, layer in enumerate(layers):
        for module in layer.modules():
            assert getattr(module, "layer_idx", place) == place
            kind = getattr(config, "layer_types", None)
            assert not kind or getattr(module, "attention_type", kind[place]) == kind[place]


def test_generation_with_the_cache_equals_generation_without(family: Any, ids: torch.Tensor) -> None:
    remove_layers(family, GONE)
    options: dict[str, Any] = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    cached = family.generate(ids[:1, :9], use_cache=True, **options)
    assert cached.shape == (1, 29)
    assert torch.equal(cached, family.generate(ids[:1, :9], use_cache=False, **options))


def test_a_saved_model_loads_with_identical_logits(family: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    remove_layers(family, GONE)
    family.save_pretrained(tmp_path)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again.eval(), ids), logits(family, ids))
    assert again.config.tie_word_embeddings == family.config.tie_word_embeddings


def test_residual_weights_of_0_remove_and_of_1_change_nothing(family: Any, ids: torch.Tensor) -> None:
    whole = logits(family, ids)
    with skipping(family, GONE):
        skipped = logits(family, ids)
    with LayerControl(find_layers(family)) as control:
        control.weights = torch.ones(6)
        assert (logits(family, ids) - whole).abs().max() < 1e-3  # h + (f(h) - h) is f(h) but for rounding
        control.place = "output"
        assert torch.equal(logits(family, ids), whole)
        control.place = "residual"
        control.weights = torch.ones(6).index_fill(0, torch.tensor(GONE), 0)
        assert (logits(family, ids) - skipped).abs().max() < 1e-3


def test_layers_removed_in_two_steps_equal_one(llama: Callable, blocks: torch.Tensor) -> None:
    once, twice = llama(6), llama(6)
    remove_layers(once, [1, 4])
    remove_layers(twice, [1])
    remove_layers(twice, [3])  # layer 4 before
    assert torch.equal(logits(once, blocks), logits(twice, blocks))


def test_tied_embeddings_stay_tied(trained: Any) -> None:
    remove_layers(trained, [2])
    assert trained.lm_head.weight is trained.model.embed_tokens.weight


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [4], [-1], [1, 7]])
def test_all_layers_or_others_cannot_go(llama: Callable, indices: list[int], blocks: torch.Tensor) -> None:
    model = llama(4)
    before = logits(model, blocks)
    with pytest.raises(UserError, match=r"cannot remove layers .* 0 to 3"):
        remove_layers(model, indices)
    assert torch.equal(logits(model, blocks), before)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    with pytest.raises(UserError, match="T5ForConditionalGeneration has an encoder"):
        find_layers(transformers.T5ForConditionalGeneration(config))


def test_layers_in_no_known_place_are_refused() -> None:
    config = transformers.BertConfig(**BASE, intermediate_size=48, is_decoder=True)
    with pytest.raises(UserError, match="the 6 decoder layers of BertLMHeadModel were not found"):
        find_layers(transformers.BertLMHeadModel(config))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("GPT2Config", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),  # a layer's place is in its arithmetic
        (
            "Qwen3MoeConfig",
            COMMON
            | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
            | {"decoder_sparse_step": 2},
        ),
    ],
)
def test_what_a_configuration_cannot_say_is_refused_and_left_alone(
    name: str, values: dict[str, Any], ids: torch.Tensor
) -> None:
    model = build(name, values)
    before, config = logits(model, ids), model.config.to_dict()
    with pytest.raises(UserError, match="layer 2 cannot move"):
        remove_layers(model, [1])
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, ids), before)


def test_observe_sees_what_enters_and_leaves_each_layer(llama: Callable, blocks: torch.Tensor) -> None:
    model = llama(3)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    by_hooks: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, args, output: by_hooks.extend([args[0], hidden_of(output)]))
    with LayerControl(find_layers(model)) as control:
        control.observe = lambda index, entering, leaving: seen.__setitem__(index, (entering, leaving))
        logits(model, blocks)
    states = [state for index in range(3) for state in seen[index]]
    assert len(by_hooks) == 6
    assert all(torch.equal(a, b) for a, b in zip(states, by_hooks, strict=True))
    assert torch.equal(seen[0][1], seen[1][0])


def test_output_weights_scale_what_a_layer_puts_out(llama: Callable, blocks: torch.Tensor) -> None:
    model = llama(3)
    plain, scaled = {}, {}
    with LayerControl(find_layers(model)) as control:
        control.observe = lambda index, _, leaving: plain.__setitem__(index, leaving)
        logits(model, blocks)
        control.observe = lambda index, entering, leaving: scaled.__setitem__(index, (entering, leaving))
        control.weights, control.place = torch.tensor([0.5, 1.0, 1.0]), "output"
        logits(model, blocks)
        assert torch.equal(scaled[0][1], 0.5 * plain[0])
        assert torch.equal(scaled[1][0], 0.5 * plain[0])
        control.place = "residual"
        logits(model, blocks)
    entering = scaled[0][0]
    assert torch.allclose(scaled[0][1], entering + 0.5 * (plain[0] - entering))


def test_replay_replaces_what_enters_a_layer(family: Any, ids: torch.Tensor) -> None:
    states: dict[int, torch.Tensor] = {}
    with LayerControl(find_layers(family)) as control:
        control.observe = lambda index, entering, _: states.__setitem__(index, entering)
        whole = logits(family, ids)
        control.observe = None
        control.replay = {3: states[3]}
        control.bypassed = {0, 1, 2}
        assert torch.equal(logits(family, ids), whole)


def test_the_model_is_itself_again_after_an_exception(llama: Callable, blocks: torch.Tensor) -> None:
    model = llama(3)
    before = logits(model, blocks)

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), LayerControl(find_layers(model)) as control:  # noqa: PT012
        control.bypassed, control.observe = {1}, fail
        logits(model, blocks)
    assert not any("forward" in vars(layer) for layer in find_layers(model))
    assert torch.equal(logits(model, blocks), before)


def test_a_control_within_another_leaves_the_outer_one_in_force(llama: Callable, blocks: torch.Tensor) -> None:
    model = llama(4)
    with skipping(model, [1]):
        outer = logits(model, blocks)
        with skipping(model, [2]):
            both = logits(model, blocks)
        assert torch.equal(logits(model, blocks), outer)
    remove_layers(model, [1, 2])
    assert torch.equal(logits(model, blocks), both)
