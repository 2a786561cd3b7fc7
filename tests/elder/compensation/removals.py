"""Tiny models of the families that a compensation meets, and layers taken out of them."""

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from elder.compensation import COMPENSATIONS, Pruned
from elder.model.layers import remove_layers

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
