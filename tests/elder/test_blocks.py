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


def test_chosen_blocks_are_different_blocks_of_the_text(
    text: Path, tokenizer: Any
) -> None:
    found = decoded(choose_blocks(text, tokenizer, 6, 10, seed=0), tokenizer)
    assert len(set(found)) == 6
    assert set(found) <= {f"line {number:4d}\n" for number in range(10)}
    assert found == decoded(choose_blocks(text, tokenizer, 6, 10, seed=0), tokenizer)
    assert found != decoded(choose_blocks(text, tokenizer, 6, 10, seed=1), tokenizer)
    everything = decoded(choose_blocks(text, tokenizer, 10, 10, seed=0), tokenizer)
    assert (
        sorted(everything)
        == [f"line {number:4d}\n" for number in range(10)]
        != everything
    )


def test_every_block_is_as_likely_in_every_place(text: Path, tokenizer: Any) -> None:
    rows = [
        decoded(choose_blocks(text, tokenizer, 3, 10, seed), tokenizer)
        for seed in range(400)
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
    with pytest.raises(
        UserError, match="holds 10 blocks of 10 tokens, 11 were asked for"
    ):
        choose_blocks(text, tokenizer, 11, 10, 0)


def test_blocks_chosen_earlier_are_read_as_they_are(
    tmp_path: Path, tokenizer: Any
) -> None:
    ids = torch.arange(24, dtype=torch.int32).view(4, 6)
    path = tmp_path / "blocks.safetensors"
    save_file({"ids": ids}, path)
    found = choose_blocks(path, tokenizer, 3, 6, seed=9)
    assert found.dtype == torch.int64
    assert found.tolist() == ids[:3].tolist()
    with pytest.raises(
        UserError, match=r"blocks of shape \(4, 6\), \(5, 6\) were asked for"
    ):
        choose_blocks(path, tokenizer, 5, 6, 0)
    with pytest.raises(UserError, match=r"\(4, 7\) were asked for"):
        choose_blocks(path, tokenizer, 4, 7, 0)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="holds no calibration blocks"):
        choose_blocks(path, tokenizer, 4, 6, 0)


def old_choice(ids: list[int], samples: int, seq_len: int, seed: int) -> torch.Tensor:
    """Choose as former versions did, whose records must be reproduced; their reservoir held rows too many."""
    rng = torch.Generator().manual_seed(seed)
    chosen: list[list[int]] = []
    for seen in range(len(ids) // seq_len):
        slot = (
            seen
            if seen < samples
            else int(torch.randint(seen + 1, (1,), generator=rng))
        )
        if slot == len(chosen):
            chosen.append(ids[seen * seq_len : (seen + 1) * seq_len])
        elif slot < samples:
            chosen[slot] = ids[seen * seq_len : (seen + 1) * seq_len]
    assert len(chosen) > samples
    return torch.tensor(chosen)[torch.randperm(samples, generator=rng)]


def test_the_reservoir_holds_as_many_blocks_as_asked_for_and_the_same_as_ever(
    text_file: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    tensor = torch.tensor

    def counted(value: list[list[int]]) -> torch.Tensor:
        rows.append(len(value))
        return tensor(value)

    monkeypatch.setattr(data, "PIECE", 5_000)
    ids = tokenizer(text_file.read_text(encoding="utf-8"))["input_ids"]
    expected = [old_choice(ids, 16, 8, seed) for seed in range(5)]
    monkeypatch.setattr(data.torch, "tensor", counted)
    for seed in range(5):
        assert torch.equal(
            choose_blocks(text_file, tokenizer, 16, 8, seed), expected[seed]
        )
    assert rows == [16] * 5


def test_a_long_line_is_cut_before_white_space_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "PIECE", 10)
    path = tmp_path / "text.txt"
    # ten characters are read at a time, and a piece is given on once it has ten
    path.write_text("one two three four five\nsix\nabcdefghijklmnop qr\n")
    pieces = list(read_pieces(path))
    assert "".join(pieces) == path.read_text()
    assert pieces == [
        "one two three four",
        " five\nsix\n",
        "abcdefghij",
        "klmnop qr\n",
    ]


def test_a_text_in_one_line_takes_no_more_memory_than_one_in_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("word " * 400_000)
    largest = max(len(piece) for piece in read_pieces(path))
    assert largest <= 2 * data.PIECE
    path.write_text("x" * 2_000_000)
    assert max(len(piece) for piece in read_pieces(path)) == data.PIECE


def test_a_long_line_is_tokenised_as_it_would_be_whole(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the tide  came in, and the boats went out with it. " * 40)
    whole = evaluation_blocks(path, tokenizer, 7)
    monkeypatch.setattr(data, "PIECE", 100)
    assert len(list(read_pieces(path))) > 10
    assert torch.equal(evaluation_blocks(path, tokenizer, 7), whole)
