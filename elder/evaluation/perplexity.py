"""Perplexity on a text, in separate blocks of tokens."""

import math
from functools import partial
from pathlib import Path

import torch

from elder.data import evaluation_blocks
from elder.model.finite import refuse_broken_losses
from elder.model.forward import block_losses
from elder.model.load import Loaded, check_tokens
from elder.parallel.ranks import count
from elder.progress import track
from elder.record import Perplexity
from elder.training.micro_batch import MicroBatch


def perplexity_of_text(
    loaded: Loaded, path: Path, seq_len: int, max_tokens: int | None, batch: int
) -> Perplexity:
    """Measure perplexity on a text in consecutive blocks; see `perplexity`.

    Raises:
        UserError: if the text is missing, empty, not UTF-8, or shorter than one block.
    """
    blocks = evaluation_blocks(path, loaded.tokenizer, seq_len, max_tokens, loaded.bos)
    check_tokens(loaded, blocks, path)
    return perplexity(loaded, blocks, batch)


def perplexity(loaded: Loaded, blocks: torch.Tensor, batch: int) -> Perplexity:
    """Measure perplexity over separate blocks: exp of the mean next-token loss.

    Args:
        loaded: the model; what its blocks begin with before their text counts neither as text nor in the loss.
        blocks: token ids, (blocks, seq_len), int64; no block sees another.
        batch: blocks in a batch.
    """
    return of_losses(losses_of(loaded, blocks, batch), text_tokens(loaded, blocks))


def text_tokens(loaded: Loaded, blocks: torch.Tensor) -> int:
    """Return how many tokens of text blocks hold, (blocks, seq_len)."""
    return blocks[:, len(loaded.bos) :].numel()


def losses_of(loaded: Loaded, blocks: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the mean next-token loss of each block in nats, (blocks,) float64; see `perplexity`.

    Raises:
        UserError: for a loss that is not finite, naming the layer where it begins; if memory holds no single block.
    """
    # several processes share out what each call is given
    batches, given = blocks.split(batch * count()), max(1, len(loaded.bos))
    at_once = MicroBatch.of_blocks("perplexity", batch, blocks.shape[1])
    losses = []
    for ids in track(batches, "perplexity", len(batches)):
        found = at_once.attempt(partial(block_losses, loaded.model, ids, given=given))
        refuse_broken_losses(loaded.model, ids, found)
        losses.append(found)
    return torch.cat(losses)


def of_losses(losses: torch.Tensor, tokens: int) -> Perplexity:
    """Return the perplexity that blocks of the same length come to.

    Its standard error follows by the delta method from the spread of the blocks; a single block has none.

    Args:
        losses: the mean loss of each block in nats, (blocks,) float64.
        tokens: of text, in all blocks together.
    """
    blocks = len(losses)
    mean = losses.mean()
    value = mean.exp()  # infinite, and no error, where the model is utterly broken
    stderr = float(value * losses.std() / math.sqrt(blocks)) if blocks > 1 else None
    return Perplexity(
        perplexity=float(value),
        stderr=stderr,
        nll=float(mean),
        tokens=tokens,
        blocks=blocks,
    )
