"""Text to blocks: what is chosen, in which order, and what is refused."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from elder import data
from elder.data import choose_blocks, evaluation_blocks, read_pieces
from elder.errors import UserError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """One hundred and three bytes, so tokens, in lines: a hundred different ones would be ten blocks of ten."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"".join(b"line %4d\n" % number for number in range(10)) + b"end")
    return path


def decoded(blocks: torch.Tensor, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row) for row in blocks]


def test_evaluation_blocks_come_in_reading_order_without_the_tail(
    text: Path, tokenizer: Any
) -> None:
    found = evaluation_blocks(text, tokenizer, 10)
    assert found.dtype == torch.int64
    assert decoded(found, tokenizer) == [f"line {number:4d}\n" for number in range(10)]
    assert len(evaluation_blocks(text, tokenizer, 10, max_tokens=39)) == 3


def test_a_text_read_in_small_pieces_is_the_same(
    text: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluation_blocks(text, tokenizer, 7)
    chosen = choose_blocks(text, tokenizer, 5, 7, seed=3)
    monkeypatch.setattr(data, "PIECE", 15)
    assert len(list(read_pieces(text))) == 6  # two lines of ten a piece, and the end
    assert "".join(read_pieces(text)) == text.read_text()
    assert torch.equal(evaluation_blocks(text, tokenizer, 7), whole)
    assert torch.equal(choose_blocks(text, tokenizer, 5, 7, seed=3), chosen)


def test_chosen_blocks_are_different_blocks_of_the_text(text: Path, tokenizer: Any) -> None:
    found = decoded(choose_blocks(text, tokenizer, 6, 10, seed=0), tokenizer)
    assert len(set(found)) == 6
    assert set(found) <= {f"line {number:4d}\n" for number in range(10)}
    assert found == decoded(choose_blocks(text, tokenizer, 6, 10, seed=0), tokenizer)
    assert found != decoded(choose_blocks(text, tokenizer, 6, 10, seed=1), tokenizer)
    everything = decoded(choose_blocks(text, tokenizer, 10, 10, seed=0), tokenizer)
    assert sorted(everything) == [f"line {number:4d}\n" for number in range(10)] != everything


def test_every_block_is_as_likely_in_every_place(text: Path, tokenizer: Any) -> None:
    rows = [
        decoded(choose_blocks(text, tokenizer, 3, 10, seed), tokenizer) for seed in range(400)
    ]
    often = Counter(block for row in rows for block in row)
    first = Counter(row[0] for row in rows)
    # 400 x 3 / 10 = 120 with a standard deviation of 9, and 400 / 10 = 40 with one of 6
    assert all(80 < often[f"line {number:4d}\n"] < 160 for number in range(10))
    assert all(15 < first[f"line {number:4d}\n"] < 65 for number in range(10))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no text file"),
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b"short", "has 5 tokens, less than one block of 10"),
        (b"caf\xe9 " * 20, "is not UTF-8 text"),
    ],
)
def test_texts_that_cannot_be_used(
    tmp_path: Path, tokenizer: Any, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        evaluation_blocks(path, tokenizer, 10)
    with pytest.raises(UserError, match=sentence):
        choose_blocks(path, tokenizer, 2, 10, 0)


def test_more_blocks_than_the_text_holds(text: Path, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="holds 10 blocks of 10 tokens, 11 were asked for"):
        choose_blocks(text, tokenizer, 11, 10, 0)


def test_blocks_chosen_earlier_are_read_as_they_are(tmp_path: Path, tokenizer: Any) -> None:
    ids = torch.arange(24, dtype=torch.int32).view(4, 6)
    path = tmp_path / "blocks.safetensors"
    save_file({"ids": ids}, path)
    found = choose_blocks(path, tokenizer, 3, 6, seed=9)
    assert found.dtype == torch.int64
    assert found.tolist() == ids[:3].tolist()
    with pytest.raises(UserError, match=r"blocks of shape \(4, 6\), \(5, 6\) were asked for"):
        choose_blocks(path, tokenizer, 5, 6, 0)
    with pytest.raises(UserError, match=r"\(4, 7\) were asked for"):
        choose_blocks(path, tokenizer, 4, 7, 0)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="holds no calibration blocks"):
        choose_blocks(path, tokenizer, 4, 6, 0)
