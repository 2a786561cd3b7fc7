"""Text that the dense model writes itself, for the shallower one to learn from.

A few calibration blocks passed again and again are soon learnt by heart. The dense model can say what it knows about
any text, so it writes more: each block begins with a few tokens of calibration text and goes on as it samples.
Learning from a teacher's own text is known from sequence-level distillation (arXiv 1606.07947) and data-free
quantisation (LLM-QAT, arXiv 2305.17888). Tokens that are trained on stay within the same budget: more blocks, seen less
often.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elder.data import batch_indices, nth_seed
from elder.device import device_of_model, memory_of
from elder.files import whole_file
from elder.model.forward import cache_bytes, continue_texts
from elder.model.head import states_seen
from elder.parallel import ranks
from elder.progress import meter
from elder.training.micro_batch import MicroBatch, free_memory

PROMPT_SHARE = 16  # a block's first sixteenth is calibration text
TOKENS_ON_CPU = 32_768  # in one batch there: twice as many are 6 % faster
CACHE_AT_ONCE = 4 * 2**30  # bytes of keys and values there
# of a GPU's memory they may take: the more texts at once, the fewer steps
SHARE_OF_GPU = 5


@dataclass(frozen=True)
class Writing:
    """What the dense model is to write.

    Attributes:
        count: blocks.
        seed: of prompts and sampling.
        first: tokens that each block begins with, and each new one will, before its text: see `elder.model.tokens`.
        by_sums: as `elder.model.forward.continue_texts`.
    """

    count: int
    seed: int
    first: int = 0
    by_sums: bool = True


def synthetic_blocks(
    dense: Any, blocks: Tensor, wanted: Writing, kept: Path | None = None
) -> Tensor:
    """Let the dense model write blocks, or read those that it wrote before.

    Args:
        dense: the dense model, in eval mode.
        blocks: calibration blocks, (samples, seq_len) int64; their text begins the new ones.
        wanted: how many, and how.
        kept: file that they are kept in, so that a killed run need not write them again; one that cannot be read or
            holds something else is written anew.

    Returns:
        (count, seq_len) int64 on the CPU.
    """
    known = ranks.told(None if kept is None else _read(kept, wanted.count, blocks))
    if known is not None:
        return known
    ids = written_blocks(dense, blocks, wanted)
    if kept is not None and ranks.is_first():
        _write(kept, ids)
    return ids


def written_blocks(
    dense: Any,
    blocks: Tensor,
    wanted: Writing,
    see: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Let the dense model write blocks, as `synthetic_blocks`.

    Args:
        dense: the dense model.
        blocks: of calibration.
        wanted: how many, and how.
        see: called with what enters its head at each token of the next blocks, (n, seq_len, hidden); in one process
            alone.
    """
    seq_len, count = blocks.shape[1], wanted.count
    prompts = choose_prompts(blocks, count, wanted.seed, wanted.first)
    cache = _cache_of_text(dense, prompts[:1], seq_len)
    rows = rows_at_once(seq_len, cache, memory_of(device_of_model(dense)))
    at_once = MicroBatch("the dense model's writing", rows)
    if ranks.count() > 1:
        rows = at_once.size  # each takes the model equally often
    with meter("dense model writes", count) as step:

        def write(batch: tuple[int, Tensor]) -> Tensor:
            number, beginnings = batch
            draws = nth_seed(wanted.seed, number), wanted.by_sums
            texts = partial(_written, dense, beginnings, seq_len, draws, see)
            written = at_once.attempt(texts)
            step(steps=ranks.count() * len(beginnings))
            return written

        ids = torch.cat(ranks.share(enumerate(prompts.split(rows)), write))
    free_memory()  # the cache's, which training would lie beside
    return ids


def rows_at_once(seq_len: int, cache: float, gpu: int | None) -> int:
    """Return how many texts are written at once: as many as their cache allows, on a CPU by their tokens, too.

    Args:
        seq_len: tokens of each.
        cache: bytes of the keys and values of each.
        gpu: bytes of its memory; None: a CPU writes.
    """
    most = CACHE_AT_ONCE if gpu is None else gpu // SHARE_OF_GPU
    rows = int(most / max(1, cache))
    if gpu is None:
        rows = min(rows, TOKENS_ON_CPU // seq_len)
    return max(1, rows)


@torch.no_grad()
def _cache_of_text(dense: Any, prompt: Tensor, seq_len: int) -> int:
    """Return the bytes of keys and values of one text, from those of its first tokens, (1, n)."""
    ids = prompt.to(device_of_model(dense))
    held = cache_bytes(dense(input_ids=ids, use_cache=True).past_key_values)
    return held * seq_len // prompt.shape[1]


def _written(
    dense: Any,
    prompts: Tensor,
    seq_len: int,
    draws: tuple[int, bool],
    see: Callable[[Tensor], None] | None,
    at_once: int,
) -> Tensor:
    """Return texts that begin with prompts, (rows, seq_len); fewer at once are other texts: sampling draws anew."""
    seed, by_sums = draws
    torch.manual_seed(seed)
    # a last token shows what comes of the one before it
    length = seq_len if see is None else seq_len + 1
    texts, states = [], []
    for piece in prompts.split(at_once):
        watch: AbstractContextManager[list[Tensor]] = (
            states_seen(dense) if see else nullcontext([])
        )
        with watch as seen:
            ids = continue_texts(dense, piece, length, temperature=1, by_sums=by_sums)
        texts.append(ids[:, :seq_len])
        if see:
            states.append(torch.cat(seen, dim=1))
    if see:  # not before all fitted
        see(torch.cat(states))
    return torch.cat(texts)


def choose_prompts(blocks: Tensor, count: int, seed: int, first: int = 0) -> Tensor:
    """Return what new blocks begin with, (count, first + seq_len / 16) int64: pieces of calibration text.

    Args:
        blocks: calibration blocks, (samples, seq_len) int64.
        count: how many; each block gives as many as the others, or one more.
        seed: of where each piece begins, and of the order.
        first: tokens before the text of each block, which stand before each piece, too.
    """
    beginning, text = blocks[:, :first], blocks[:, first:]
    seq_len = text.shape[1]
    length = max(1, seq_len // PROMPT_SHARE)
    random = torch.Generator().manual_seed(seed)
    starts = torch.randint(seq_len - length + 1, (count,), generator=random).tolist()
    chosen = batch_indices(len(blocks), count, 0, seed).tolist()
    prompts = []
    for index, start in zip(chosen, starts, strict=True):
        piece = text[index, start : start + length]
        prompts.append(torch.cat([beginning[index], piece]))
    return torch.stack(prompts)


def _read(path: Path, count: int, blocks: Tensor) -> Tensor | None:
    """Return the blocks in a file, which `elder.training.teacher` may have written, those of calibration below them."""
    ids = read_ids(path)
    if ids is None or ids.shape[1:] != blocks.shape[1:]:
        return None
    return ids[:count] if len(ids) in (count, count + len(blocks)) else None


def read_ids(path: Path, tensors: tuple[str, ...] = ("ids",)) -> Tensor | None:
    """Return the token ids in a file; None where it is absent or damaged, or does not hold all of some tensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            whole = set(tensors) <= set(file.keys())
            return file.get_tensor("ids") if whole else None
    except (SafetensorError, OSError):
        return None


def _write(path: Path, ids: Tensor) -> None:
    from safetensors.torch import save_file

    with whole_file(path) as new:
        save_file({"ids": ids}, new)
