"""A tiny LLaMA in a GGUF file, written with the package gguf as llama.cpp's converter would."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tokenizers import pre_tokenizers

HIDDEN, WIDE, LAYERS, HEADS, PAIRS, CONTEXT = 64, 96, 4, 4, 2, 64
# the bytes, one merge, and the end of a text
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|end|>", *ALPHABET, "Ġt"]
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN * PAIRS // HEADS, HIDDEN),
    "attn_v": (HIDDEN * PAIRS // HEADS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (WIDE, HIDDEN),
    "ffn_up": (WIDE, HIDDEN),
    "ffn_down": (HIDDEN, WIDE),
}
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
Change = Callable[[gguf.GGUFWriter], Any]


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of queries or keys as llama.cpp has them: halves become pairs, [0 2 1 3] of [0 1 2 3]."""
    split = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
    return split.swapaxes(1, 2).reshape(weight.shape)


def weights() -> dict[str, np.ndarray]:
    """Return the weights in transformers' order of rows, by their names in a GGUF file."""
    random = np.random.default_rng(0)
    found = {"token_embd": random.normal(size=(len(TOKENS), HIDDEN)) * 0.5}
    for layer in range(LAYERS):
        for name, shape in SHAPES.items():
            found[f"blk.{layer}.{name}"] = random.normal(size=shape) * 0.2
    return {name: weight.astype(np.float32) for name, weight in found.items()}


def write(
    path: Path,
    architecture: str = "llama",
    kind: Kind = Kind.Q4_1,
    change: Change | None = None,
) -> Path:
    """Write the model: matrices of one type, the embedding in Q8_0, norms as plain numbers."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(PAIRS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, *[1] * (len(TOKENS) - 1)])
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template(CHAT)
    for name, weight in weights().items():
        heads = {"attn_q": HEADS, "attn_k": PAIRS}.get(name.split(".")[-1])
        stored = permuted(weight, heads) if heads else weight
        as_kind = Kind.Q8_0 if name == "token_embd" else kind
        quantised = gguf.quantize(stored, as_kind)
        writer.add_tensor(f"{name}.weight", quantised, raw_dtype=as_kind)
    ones = np.ones(HIDDEN, dtype=np.float32)
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
    writer.add_tensor("output_norm.weight", ones)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
