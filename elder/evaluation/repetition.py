"""Does a model's own text degenerate? Perplexity is taken on others' text, so it cannot see a model that runs in loops.

The measure is the share of 4-grams that were there before in the same text (seq-rep-4 of arXiv 1908.04319). Small
models repeat themselves even when they are sound, so two models are compared: same prompts, same seed, sampled rather
than greedy, since greedy text of a sound small model is a loop too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from elder.data import evaluation_blocks
from elder.model.forward import continue_texts
from elder.model.load import Loaded, check_tokens, context_length
from elder.progress import Meter, meter
from elder.record import Repetition

GRAM = 4
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 32, 64
SPREAD = 64  # times the prompts, that they are taken from
TEMPERATURE = 0.7
SEED = 0


def repetition(dense: Loaded, pruned: Loaded, text: Path, batch: int) -> Repetition:
    """Let both models continue the same prompts, and measure how much each repeats itself.

    Args:
        dense: the dense model; its tokenizer reads the prompts.
        pruned: the shallower one.
        text: UTF-8 text that the prompts are taken from, at even distances.
        batch: prompts continued at once.

    Returns:
        Shares of repeated 4-grams, 0 to 1.
    """
    length, prompt = _lengths(dense, pruned)
    enough = prompt * PROMPTS * SPREAD
    blocks = evaluation_blocks(text, dense.tokenizer, prompt, enough, dense.bos)
    check_tokens(dense, blocks, text)
    distance = max(1, len(blocks) // PROMPTS)
    starts = blocks[::distance][:PROMPTS]
    with meter("repetition", 2 * len(starts)) as step:
        shares = [
            _share_of_model(loaded.model, starts.split(batch), length, step)
            for loaded in (dense, pruned)
        ]
    return Repetition(
        dense=shares[0],
        pruned=shares[1],
        prompts=len(starts),
        new_tokens=length - prompt,
        temperature=TEMPERATURE,
    )


def _lengths(dense: Loaded, pruned: Loaded) -> tuple[int, int]:
    """Return the tokens of a text, and how many of them are its prompt: less where a context is short."""
    length = PROMPT_TOKENS + NEW_TOKENS
    for loaded in (dense, pruned):
        length = min(length, context_length(loaded.model) or length)
    return length, min(PROMPT_TOKENS, length // 3)


def _share_of_model(
    model: Any, batches: Sequence[torch.Tensor], length: int, step: Meter
) -> float:
    """Return the share of repeated 4-grams in what a model writes after prompts of (rows, tokens)."""
    written = []
    for number, prompts in enumerate(batches):
        torch.manual_seed(SEED + number)
        texts = continue_texts(model, prompts, length, TEMPERATURE)
        written.append(texts[:, prompts.shape[1] :])
        step(steps=len(prompts))
    return repeated_share(torch.cat(written))


def repeated_share(ids: torch.Tensor) -> float:
    """Return the share of 4-grams that occurred before in their row, over all rows.

    Args:
        ids: (rows, tokens), at least 4 tokens.
    """
    grams = ids.cpu().unfold(1, GRAM, 1)  # (rows, tokens - 3, 4)
    distinct = sum(len(row.unique(dim=0)) for row in grams)
    rows, positions = grams.shape[:2]
    return 1 - distinct / (rows * positions)
