"""Every model family that the sweep covers: a tiny model's configuration, and what it must say without two layers.

Six layers each, of which layers 1 and 4 go: 0, 2, 3 and 5 stay. Sliding windows are shorter than the text, so that they
matter. Expected fields are worked by hand from the comment beside them.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

COUNT, GONE, KEPT = 6, (1, 4), (0, 2, 3, 5)
IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
BASE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": COUNT,
    "num_attention_heads": 4,
}
LONG = BASE | {"intermediate_size": 48, "max_position_embeddings": 64}
COMMON = LONG | {"num_key_value_heads": 2}
GPT2 = {
    "vocab_size": 300,
    "n_embd": 32,
    "n_layer": COUNT,
    "n_head": 4,
    "n_positions": 64,
}
NEO = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_layers": COUNT,
    "num_heads": 4,
    "max_position_embeddings": 64,
}
OPT = BASE | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
MOE = COMMON | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
}
DEEPSEEK = LONG | LATENT | ROUTED
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Family:
    """One tiny model.

    Attributes:
        family: as the docs name it.
        config: class of its configuration.
        values: of that configuration.
        says: fields of the saved configuration without the layers in GONE.
    """

    family: str
    config: str
    values: dict[str, Any]
    says: dict[str, Any] = field(default_factory=dict)

    def build(self, std: float = 0.3) -> Any:
        """Make the model, with weights so large that every layer matters."""
        config = getattr(transformers, self.config)(**self.values, **IDS)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=std)
        return model


COMMONLY = {
    "llama": Family("Llama 2, 3", "LlamaConfig", COMMON),
    "llama3-tied": Family(
        "Llama 2, 3",
        "LlamaConfig",
        COMMON
        | {"tie_word_embeddings": True}
        | {
            "rope_scaling": LLAMA3
            | {"original_max_position_embeddings": 32, "rope_theta": 5e5}
        },
    ),
    "mistral": Family("Mistral", "MistralConfig", COMMON | {"sliding_window": 8}),
    # windows from layer 3 on: FFFSSS -> FFSS, so from layer 2 on
    "qwen2": Family(
        "Qwen2, Qwen2.5",
        "Qwen2Config",
        COMMON
        | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
        {"layer_types": [FULL, FULL, SLIDING, SLIDING], "max_window_layers": 2},
    ),
    # no windows at all: from layer 6 on, so from layer 4 on
    "qwen3": Family(
        "Qwen3",
        "Qwen3Config",
        COMMON | {"head_dim": 8, "max_window_layers": 6},
        {"max_window_layers": 4},
    ),
    # SFSFSF -> SSFF
    "gemma2": Family(
        "Gemma 2",
        "Gemma2Config",
        COMMON | {"head_dim": 8, "sliding_window": 8},
        {"layer_types": [SLIDING, SLIDING, FULL, FULL]},
    ),
    # every 3rd is full: SSFSSF -> SFSF, so every 2nd
    "gemma3": Family(
        "Gemma 3 (text)",
        "Gemma3TextConfig",
        COMMON | {"head_dim": 8, "sliding_window": 8, "sliding_window_pattern": 3},
        {
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "sliding_window_pattern": 2,
            "_sliding_window_pattern": 2,
        },
    ),
    "phi": Family("Phi-1.5, Phi-2", "PhiConfig", LONG),
    "phi3": Family("Phi-3, Phi-4", "Phi3Config", COMMON | {"sliding_window": 8}),
    "opt": Family("OPT", "OPTConfig", OPT),
    "opt-post-norm": Family("OPT", "OPTConfig", OPT | {"do_layer_norm_before": False}),
    "opt-projected": Family(
        "OPT",
        "OPTConfig",
        OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
    "gpt-neox": Family("GPT-NeoX, Pythia", "GPTNeoXConfig", LONG),
    "gpt-neox-serial": Family(
        "GPT-NeoX, Pythia", "GPTNeoXConfig", LONG | {"use_parallel_residual": False}
    ),
    "gpt2": Family("GPT-2", "GPT2Config", GPT2),
    # glglgl -> ggll
    "gpt-neo": Family(
        "GPT-Neo",
        "GPTNeoConfig",
        NEO | {"attention_types": [[["global", "local"], 3]], "window_size": 8},
        {"attention_layers": ["global", "global", "local", "local"]}
        | {"attention_types": [[["global", "global", "local", "local"], 1]]},
    ),
    "falcon": Family("Falcon", "FalconConfig", BASE),
    "falcon-40b": Family(
        "Falcon",
        "FalconConfig",
        BASE | {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    ),
    "bloom": Family(
        "BLOOM",
        "BloomConfig",
        {"vocab_size": 300, "hidden_size": 32, "n_layer": COUNT, "n_head": 4},
    ),
    "olmo2": Family("OLMo 2", "Olmo2Config", COMMON),
    "mixtral": Family("Mixtral", "MixtralConfig", COMMON | {"num_local_experts": 4}),
    # layers 0 and 3 without experts: they are 0 and 2 afterwards
    "qwen3-moe": Family(
        "Qwen2-MoE, Qwen3-MoE",
        "Qwen3MoeConfig",
        MOE | {"mlp_only_layers": [0, 3]},
        {"mlp_only_layers": [0, 2]},
    ),
    # experts in 1, 3, 5: of 0, 2, 3, 5 the last two, so none in 0 and 1
    "qwen3-moe-every-2nd": Family(
        "Qwen2-MoE, Qwen3-MoE",
        "Qwen3MoeConfig",
        MOE | {"decoder_sparse_step": 2},
        {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1]},
    ),
    # three dense ones at the front, two of which stay
    "deepseek-v3": Family(
        "DeepSeek-V3",
        "DeepseekV3Config",
        DEEPSEEK | {"first_k_dense_replace": 3, "num_nextn_predict_layers": 1},
        {"first_k_dense_replace": 2, "num_nextn_predict_layers": 0},
    ),
    # SFSFSF -> SSFF
    "gpt-oss": Family(
        "gpt-oss",
        "GptOssConfig",
        COMMON
        | {
            "head_dim": 8,
            "sliding_window": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        }
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"layer_types": [SLIDING, SLIDING, FULL, FULL]},
    ),
    "granite": Family("Granite", "GraniteConfig", COMMON),
    # every 2nd without rotary embedding: 101010 -> 1100, which no interval says
    "smollm3": Family(
        "SmolLM3",
        "SmolLM3Config",
        COMMON | {"no_rope_layer_interval": 2},
        {"no_rope_layers": [1, 1, 0, 0], "no_rope_layer_interval": 0},
    ),
    # every 3rd: 110110 -> 1010, so every 2nd; a list longer than the model is cut to its length
    "smollm3-every-3rd": Family(
        "SmolLM3",
        "SmolLM3Config",
        COMMON
        | {"no_rope_layer_interval": 3, "no_rope_layers": [1, 1, 0, 1, 1, 0, 1, 1]}
        | {"use_sliding_window": True, "sliding_window": 8},
        {
            "no_rope_layers": [1, 0, 1, 0],
            "no_rope_layer_interval": 2,
            "layer_types": [FULL, SLIDING, FULL, SLIDING],
        },
    ),
    # LLLGLL -> LLGL, in which every 3rd is full
    "exaone4": Family(
        "EXAONE 4",
        "Exaone4Config",
        COMMON | {"sliding_window": 8, "sliding_window_pattern": 4},
        {"layer_types": [SLIDING, SLIDING, FULL, SLIDING], "sliding_window_pattern": 3},
    ),
    # the same as letters: LLLG is not the beginning of LLGL
    "exaone4-letters": Family(
        "EXAONE 4",
        "Exaone4Config",
        COMMON
        | {"sliding_window": 8, "sliding_window_pattern": "LLLG"}
        | {"layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING, SLIDING]},
        {
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
            "sliding_window_pattern": "LLGL",
        },
    ),
}


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits
