"""The share of repeated 4-grams by hand, and text of models that are sound or run in loops."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from elder.evaluation.repetition import repeated_share, repetition
from elder.model.load import Loaded


def looping(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Make the likeliest token certain: the model then ends in a loop, as greedy decoding of a small model does."""
    broken = copy.deepcopy(model)
    broken.model.norm.weight.mul_(50)
    return broken


def test_repeated_share_by_hand() -> None:
    # 4-grams of the first row: 1234 2341 3412 4123 1234, four of five distinct; of the second: five of five
    ids = torch.tensor([[1, 2, 3, 4, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]])
    assert repeated_share(ids) == pytest.approx(1 - 9 / 10)
    # the same token over and over: one of five distinct. What another row says does not count
    assert repeated_share(torch.full((2, 8), 7)) == pytest.approx(1 - 2 / 10)
    assert repeated_share(torch.tensor([[1, 2, 3, 4]])) == 0


def test_a_model_that_loops_repeats_itself_and_a_sound_one_does_not(
    loaded: Loaded, text_file: Path
) -> None:
    broken = Loaded(
        looping(loaded.model), loaded.tokenizer, "broken", None, torch.float32
    )
    found = repetition(loaded, broken, text_file, batch=16)
    assert found.dense < 0.1
    assert found.pruned > 0.3
    # a context of 64 tokens: a third of it is the prompt
    assert (found.prompts, found.new_tokens) == (16, 43)


def test_the_same_model_repeats_itself_as_much_whatever_else_was_drawn(
    loaded: Loaded, text_file: Path
) -> None:
    first = repetition(loaded, loaded, text_file, batch=5)
    torch.rand(3)
    assert first.dense == first.pruned
    assert repetition(loaded, loaded, text_file, batch=5) == first


def test_a_model_without_finite_logits_is_no_crash(
    loaded: Loaded, text_file: Path
) -> None:
    broken = copy.deepcopy(loaded.model)
    broken.model.norm.weight.fill_(float("nan"))
    found = repetition(
        loaded,
        Loaded(broken, loaded.tokenizer, "broken", None, torch.float32),
        text_file,
        batch=16,
    )
    assert 0 <= found.pruned <= 1


def test_a_short_text_gives_fewer_prompts(
    loaded: Loaded, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a" * 50, encoding="utf-8")  # two blocks of 21 bytes, and a rest
    assert repetition(loaded, loaded, text, batch=16).prompts == 2
