"""The families that are rarer, those that lose only some of their layers, and those that lose none."""

from tests.elder.families import (
    BASE,
    COMMON,
    COMMONLY,
    COUNT,
    FULL,
    GPT2,
    LONG,
    MOE,
    ROUTED,
    SLIDING,
    Family,
)

STATE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": COUNT,
    "state_size": 8,
}
HYBRID = {
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_n_groups": 1,
    "mamba_d_head": 8,
    "mamba_expand": 2,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
# One for each other way in which a configuration speaks of layers, or in which layers work.
OTHERS = {
    "gemma": Family("Gemma", "GemmaConfig", COMMON | {"head_dim": 8}),
    "cohere2": Family(
        "Command R, R7B", "Cohere2Config", COMMON | {"sliding_window": 8}
    ),
    "starcoder2": Family(
        "StarCoder2", "Starcoder2Config", COMMON | {"sliding_window": 8}
    ),
    "stablelm": Family("StableLM", "StableLmConfig", COMMON),
    "olmo3": Family(
        "OLMo, OLMo 3, OLMoE", "Olmo3Config", COMMON | {"sliding_window": 8}
    ),
    "glm4": Family("GLM-4", "Glm4Config", COMMON | {"head_dim": 8}),
    "glm4-moe": Family(
        "GLM-4.5",
        "Glm4MoeConfig",
        COMMON
        | ROUTED
        | {"head_dim": 8, "n_shared_experts": 1, "first_k_dense_replace": 2},
        {"first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
    ),
    "gpt-j": Family("GPT-J, CodeGen", "GPTJConfig", GPT2 | {"rotary_dim": 4}),
    "gpt-1": Family("GPT", "OpenAIGPTConfig", GPT2),  # its layers return lists
    "mpt": Family(
        "MPT",
        "MptConfig",
        {"vocab_size": 300, "d_model": 32, "n_layers": COUNT, "n_heads": 4},
    ),
    # every 3rd attends in full: LLFLLF -> LFLF
    "qwen3-next": Family(
        "Qwen3-Next, Qwen3.5",
        "Qwen3NextConfig",
        MOE
        | LINEAR
        | {"shared_expert_intermediate_size": 16, "full_attention_interval": 3},
        {"layer_types": ["linear_attention", FULL, "linear_attention", FULL]},
    ),
    # attention in layers 2 and 4: 2 becomes 1, 4 goes; its layers return pairs
    "bamba": Family(
        "Bamba",
        "BambaConfig",
        COMMON | HYBRID | {"attn_layer_indices": [2, 4]},
        {"attn_layer_indices": [1]},
    ),
    "mamba": Family("Mamba, Falcon Mamba", "MambaConfig", STATE),
    "mamba2": Family(
        "Mamba 2",
        "Mamba2Config",
        STATE | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    # experts in layers 2 to 5: of 0, 2, 3, 5 those in 1 to 3
    "ernie-moe": Family(
        "ERNIE 4.5 MoE",
        "Ernie4_5_MoeConfig",
        COMMON
        | {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_layer_start_index": 2,
        },
        {"moe_layer_start_index": 1, "moe_layer_end_index": 3},
    ),
    # two dense ones at the front, one of which stays; every 4th is full: SSSFSS -> SSFS, so every 3rd
    "afmoe": Family(
        "AFMoE",
        "AfmoeConfig",
        MOE | {"num_dense_layers": 2, "num_shared_experts": 1, "sliding_window": 8},
        {
            "num_dense_layers": 1,
            "global_attn_every_n_layers": 3,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
        },
    ),
    # experts in 2 and 5: 1 and 3 afterwards, every 2nd; no rotary embedding in every 4th: 111011 -> 1101, every 3rd
    "llama4": Family(
        "Llama 4 (text)",
        "Llama4TextConfig",
        COMMON
        | {
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": 8,
        }
        | {"interleave_moe_layer_step": 3, "no_rope_layer_interval": 4},
        {"moe_layers": [1, 3], "interleave_moe_layer_step": 2}
        | {"no_rope_layers": [1, 1, 0, 1], "no_rope_layer_interval": 3},
    ),
}
FAMILIES = COMMONLY | OTHERS
# Configurations that say only some removals: a pattern without a list, or arithmetic that counts layers.
PARTLY = {
    "gpt2-inverse": Family(
        "GPT-2", "GPT2Config", GPT2 | {"scale_attn_by_inverse_layer_idx": True}
    ),
    "jamba": Family(
        "Jamba",
        "JambaConfig",
        COMMON
        | {
            "num_experts": 2,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 3,
        }
        | {"mamba_d_state": 8, "use_mamba_kernels": False},
    ),
    "diffllama": Family("DiffLlama", "DiffLlamaConfig", COMMON),
}
# Families that cannot be made shallower, and a part of the refusal.
REFUSED = {
    "gemma3n": (
        Family(
            "Gemma 3n",
            "Gemma3nTextConfig",
            COMMON
            | {
                "head_dim": 8,
                "hidden_size_per_layer_input": 4,
                "vocab_size_per_layer_input": 300,
                "laurel_rank": 4,
            }
            | {
                "num_kv_shared_layers": 2,
                "sliding_window": 8,
                "layer_types": [SLIDING, FULL] * 3,
            },
        ),
        "read the keys and values of earlier ones",
    ),
    "gemma4": (
        Family(
            "Gemma 4",
            "Gemma4TextConfig",
            COMMON
            | {
                "head_dim": 8,
                "global_head_dim": 16,
                "num_kv_shared_layers": 0,
                "sliding_window": 8,
            }
            | {"hidden_size_per_layer_input": 0},
        ),
        "configures its layers one by one",
    ),
    "zamba2": (
        Family(
            "Zamba, Zamba2",
            "Zamba2Config",
            BASE
            | {
                "mamba_d_state": 8,
                "n_mamba_heads": 4,
                "mamba_headdim": 16,
                "use_mamba_kernels": False,
            }
            | {
                "layers_block_type": ["mamba", "hybrid"] * 3,
                "max_position_embeddings": 64,
            },
        ),
        "its layers 1 and 3 share weights",
    ),
    "rwkv": (
        Family(
            "RWKV",
            "RwkvConfig",
            {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": COUNT},
        ),
        "halves the hidden state after every few layers",
    ),
    "xlstm": (
        Family(
            "xLSTM",
            "xLSTMConfig",
            {"vocab_size": 300, "hidden_size": 32, "num_blocks": COUNT, "num_heads": 4},
        ),
        "were not found",
    ),
    "bert": (
        Family(
            "BERT and its kin as decoders", "BertConfig", LONG | {"is_decoder": True}
        ),
        "the 6 decoder layers of BertLMHeadModel were not found",
    ),
}
