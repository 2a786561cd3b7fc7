"""From text to blocks of tokens: calibration blocks chosen by a seed, evaluation blocks in reading order.

Long files are streamed: a text is tokenised in pieces of whole lines, so it may be larger than memory.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from elder.errors import INSTALL, UserError
from elder.files import refuse_pointer
from elder.names import format_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 1 << 18  # characters tokenised at once
SEEDS = 2**63  # seeds that torch takes of every kind


def read_pieces(path: Path) -> Iterator[str]:
    """Yield a UTF-8 text in pieces of whole lines, of `PIECE` to three times as many characters.

    A line that is itself longer than a piece is cut while it is read: before the last white space of each piece, where
    tokenizers part words too, or after `PIECE` characters without any, where a token may be cut in two.

    Raises:
        UserError: if the file is missing, empty or not UTF-8.
    """
    if not path.is_file():
        raise UserError(
            f"there is no text file {str(path)!r}; give the path of a plain UTF-8 text"
        )
    refuse_pointer(path)
    if format_of(path.name):
        raise UserError(
            f"{str(path)!r} is no plain text by its name, and needs the pipeline's packages: {INSTALL}; or write its "
            "text into a plain UTF-8 file"
        )
    lines: list[str] = []
    size = 0
    try:
        with path.open(encoding="utf-8-sig") as handle:
            for line in _lines(handle):
                refuse_binary(str(path), line)
                lines.append(line)
                size += len(line)
                if size >= PIECE:
                    yield "".join(lines)
                    lines, size = [], 0
    except UnicodeDecodeError as error:
        raise UserError(
            f"{str(path)!r} is not UTF-8 text ({error.reason}); convert it first, for example with iconv"
        ) from None
    if lines:
        yield "".join(lines)


def refuse_binary(name: str, text: str) -> None:
    """Refuse what decodes as UTF-8 and is no text: archives, and UTF-16 without its mark.

    Raises:
        UserError: if there is a null character.
    """
    if "\0" in text:
        raise UserError(
            f"{name!r} holds null characters, as archives and UTF-16 do; give plain UTF-8 text: unpack it, or convert "
            "it with iconv"
        )


def refuse_rows(name: str, beginning: str) -> None:
    """Refuse JSON Lines under the name of a plain text, whose markup would be taken for text.

    Args:
        name: of the file.
        beginning: of its text, some lines.

    Raises:
        UserError: if its first two lines, or the only one, are JSON objects.
    """
    lines = [line for line in beginning.split("\n")[:2] if line.strip()]
    if lines and all(line[:2] == '{"' and _is_json(line) for line in lines):
        raise UserError(
            f"{name!r} holds rows of JSON, not plain text; rename it to .jsonl, and say with calibration.column which "
            "column is text"
        )


def refuse_rows_in(path: Path) -> None:
    """Refuse JSON Lines under the name of a plain text; what else is wrong with the file is seen where it is read.

    Raises:
        UserError: as `refuse_rows` says.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        refuse_rows(str(path), handle.read(PIECE))


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _lines(handle: TextIO) -> Iterator[str]:
    """Yield lines; one that is longer than a piece in parts."""
    rest = ""
    while more := handle.readline(PIECE):
        part, rest = rest + more, ""
        if len(more) == PIECE and not more.endswith("\n"):
            cut = _place_to_cut(part)
            part, rest = part[:cut], part[cut:]
        yield part
    if rest:
        yield rest


def _place_to_cut(part: str) -> int:
    """Return the index of the last white space, or the length where there is none behind the first character."""
    for index in range(len(part) - 1, 0, -1):
        if part[index].isspace():
            return index
    return len(part)


def _flat_ids(path: Path, tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[int]]:
    empty = True
    for piece in read_pieces(path):
        empty = empty and not piece.strip()
        yield tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
    if empty:
        raise UserError(
            f"the text file {str(path)!r} is empty; it must hold at least one block of text"
        )


def evaluation_blocks(
    path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    seq_len: int,
    max_tokens: int | None = None,
    bos: Sequence[int] = (),
) -> torch.Tensor:
    """Cut a text into consecutive blocks in reading order; the tail shorter than a block is left out.

    Args:
        path: UTF-8 text.
        tokenizer: any tokenizer of transformers.
        seq_len: tokens in a block.
        max_tokens: stop after this many tokens of text; None takes the whole text.
        bos: what each block begins with, before its text; see `elder.model.tokens`.

    Returns:
        Token ids, (blocks, seq_len), int64.

    Raises:
        UserError: if the file is missing, empty, not UTF-8, or shorter than one block.
    """
    ids = array("q")  # a list would take five times the memory
    for piece in _flat_ids(path, tokenizer):
        ids.extend(piece)
        if max_tokens and len(ids) >= max_tokens:
            ids = ids[:max_tokens]
            break
    text = seq_len - len(bos)
    blocks = len(ids) // text
    if not blocks:
        raise _too_short(path, len(ids), text)
    cut = torch.tensor(ids[: blocks * text]).view(blocks, text)
    first = torch.tensor(bos, dtype=torch.int64).expand(blocks, -1)
    return torch.cat([first, cut], dim=1)


def choose_blocks(
    path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    samples: int,
    seq_len: int,
    seed: int,
    bos: Sequence[int] = (),
) -> torch.Tensor:
    """Choose calibration blocks at random from the consecutive blocks of a text, without replacement.

    One pass with reservoir sampling: memory holds only the chosen blocks, however long the text is.

    Args:
        path: UTF-8 text, or a .safetensors file with ``ids`` made by this function earlier.
        tokenizer: any tokenizer of transformers.
        samples: number of blocks.
        seq_len: tokens in a block.
        seed: the same seed chooses the same blocks in the same order.
        bos: what each block begins with, before its text; see `elder.model.tokens`.

    Returns:
        Token ids, (samples, seq_len), int64.

    Raises:
        UserError: if the text is missing, empty, not UTF-8, or has fewer blocks than asked for, or if blocks
            chosen earlier do not begin so.
    """
    if path.suffix == ".safetensors":
        return _read_blocks(path, samples, seq_len, bos)
    rng = torch.Generator().manual_seed(seed)
    chosen: list[list[int]] = []
    seen = 0
    for block in _blocks(path, tokenizer, seq_len, bos):
        slot = (
            seen
            if seen < samples
            else int(torch.randint(seen + 1, (1,), generator=rng))
        )
        seen += 1
        if slot >= samples:
            continue
        if slot == len(chosen):
            chosen.append(block)
        else:
            chosen[slot] = block
    if seen < samples:
        raise UserError(
            f"{str(path)!r} holds {seen} blocks of {seq_len} tokens, {samples} were asked for; lower samples or seq-len"
        )
    return torch.tensor(chosen)[torch.randperm(samples, generator=rng)]


def _blocks(
    path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    seq_len: int,
    bos: Sequence[int],
) -> Iterator[list[int]]:
    """Yield the consecutive blocks of a text; the tail shorter than a block is left out.

    Raises:
        UserError: at the end, if there was none.
    """
    rest: list[int] = []
    whole, text = 0, seq_len - len(bos)
    for ids in _flat_ids(path, tokenizer):
        rest += ids
        blocks = len(rest) // text
        whole += blocks
        for start in range(0, blocks * text, text):
            yield [*bos, *rest[start : start + text]]
        rest = rest[blocks * text :]
    if not whole:
        raise _too_short(path, len(rest), text)


def _too_short(path: Path, tokens: int, seq_len: int) -> UserError:
    return UserError(
        f"{str(path)!r} has {tokens} tokens, less than one block of {seq_len}; give a longer text or a smaller seq-len"
    )


def _read_blocks(
    path: Path, samples: int, seq_len: int, bos: Sequence[int]
) -> torch.Tensor:
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"there is no file of calibration blocks {str(path)!r}")
    try:
        ids = load_file(path)["ids"].long()
    except Exception as error:  # safetensors raises its own type for a damaged file
        raise UserError(f"{str(path)!r} holds no calibration blocks: {error}") from None
    if ids.shape[0] < samples or ids.shape[1] != seq_len:
        raise UserError(
            f"{str(path)!r} holds blocks of shape {tuple(ids.shape)}, ({samples}, {seq_len}) were asked for"
        )
    if ids[:, : len(bos)].tolist() != [list(bos)] * len(ids):
        raise UserError(
            f"{str(path)!r} holds blocks that do not begin with {list(bos)}, as this model's texts "
            "do; choose them anew, or set calibration.bos=false"
        )
    return ids[:samples]


def nth_seed(seed: int, number: int) -> int:
    """Return the seed of one of the many draws that a seed stands for: of an epoch, a step, a batch.

    Args:
        seed: any that the parameters allow, those near 2^63 included.
        number: counted from 0.
    """
    return (seed * 100_003 + number) % SEEDS


def batch_indices(count: int, batch: int, step: int, seed: int) -> torch.Tensor:
    """Return the indices of the blocks in one training step: every epoch is a new shuffle, and no block is left out.

    The answer depends on the arguments alone, so a run resumed at any step sees what it would have seen.

    Args:
        count: number of blocks.
        batch: blocks in a step; an epoch's last blocks and the next one's first may share a step.
        step: counted from 0.
        seed: of the shuffles.

    Returns:
        (batch,) int64.
    """
    chosen = []
    orders: dict[int, torch.Tensor] = {}
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, count)
        if epoch not in orders:
            shuffle = torch.Generator().manual_seed(nth_seed(seed, epoch))
            orders[epoch] = torch.randperm(count, generator=shuffle)
        chosen.append(orders[epoch][place])
    return torch.stack(chosen)
