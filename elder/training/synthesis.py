"""Text that the dense model writes itself, for the shallower one to learn from.

A few calibration blocks passed again and again are soon learnt by heart. The dense model can say what it knows about
any text, so it writes more: each block begins with a few tokens of calibration text and goes on as it samples.
Learning from a teacher's own text is known from sequence-level distillation (arXiv 1606.07947) and data-free
quantisation (LLM-QAT, arXiv 2305.17888). Tokens that are trained on stay within the same budget: more blocks, seen less
often.
"""

from pathlib import Path
from typing import Any

import torch

from elder.data import batch_indices
from elder.files import whole_file
from elder.model.forward import continue_texts
from elder.progress import meter

PROMPT_SHARE = 16  # a block's first sixteenth is calibration text
TOKENS_AT_ONCE = 32_768  # in one batch of generation: bounds the key/value cache


def synthetic_blocks(
    dense: Any, blocks: torch.Tensor, count: int, seed: int, kept: Path | None = None
) -> torch.Tensor:
    """Let the dense model write blocks.

    Args:
        dense: the dense model, in eval mode.
        blocks: calibration blocks, (samples, seq_len) int64; their text begins the new ones.
        count: how many to write.
        seed: of prompts and sampling.
        kept: file that they are kept in, so that a killed run need not write them again.

    Returns:
        (count, seq_len) int64 on the CPU.
    """
    from safetensors.torch import load_file, save_file

    if kept is not None and kept.exists():
        return load_file(kept)["ids"]
    seq_len = blocks.shape[1]
    prompt = max(1, seq_len // PROMPT_SHARE)
    starts = torch.randint(
        seq_len - prompt + 1, (count,), generator=torch.Generator().manual_seed(seed)
    )
    chosen = batch_indices(len(blocks), count, 0, seed)
    prompts = torch.stack(
        [
            blocks[i, s : s + prompt]
            for i, s in zip(chosen.tolist(), starts.tolist(), strict=True)
        ]
    )
    written = []
    batches = prompts.split(max(1, TOKENS_AT_ONCE // seq_len))
    with meter("dense model writes", count) as step:
        for number, batch in enumerate(batches):
            torch.manual_seed(seed * 100_003 + number)
            written.append(continue_texts(dense, batch, seq_len, temperature=1.0))
            step(steps=len(batch))
    ids = torch.cat(written)
    if kept is not None:
        with whole_file(kept) as new:
            save_file({"ids": ids}, new)
    return ids
