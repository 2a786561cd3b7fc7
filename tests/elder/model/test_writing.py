"""Text that a model writes: each token is drawn by its share, and attention is what it is without the ways of a CPU."""

import math
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from transformers import GenerationConfig

from elder.model.forward import Draw, continue_texts, packed_queries

ROWS = 20_000


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_by_their_shares(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, -math.inf, 1.0, 2.0, -math.inf])
    left = Draw(temperature)(torch.empty(0), logits.expand(ROWS, -1))
    assert left.sum(dim=1).eq(1).all()
    found = torch.bincount(left.argmax(dim=1), minlength=5) / ROWS
    shares = (logits / temperature).softmax(dim=0)
    assert found[shares == 0].eq(0).all()
    errors = (shares * (1 - shares) / ROWS).sqrt()
    assert ((found - shares).abs() <= 4 * errors).all(), (found, shares)


def test_a_broken_model_writes_some_token_of_the_vocabulary() -> None:
    for value in (math.nan, math.inf):
        left = Draw(1.0)(torch.empty(0), torch.full((3, 7), value))
        assert left.sum(dim=1).tolist() == [1, 1, 1]


def test_a_seed_writes_one_text(llama: Callable) -> None:
    model = llama().eval()
    prompts = torch.randint(0, model.config.vocab_size, (3, 2))
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(continue_texts(model, prompts, 12, 1.0))
    assert texts[0].shape == (3, 12)
    assert torch.equal(texts[0][:, :2], prompts)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])
    # as versions before did
    torch.manual_seed(0)
    former = continue_texts(model, prompts, 12, 1.0, by_sums=False)
    torch.manual_seed(0)
    plain = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=10,
        min_new_tokens=10,
        pad_token_id=0,
        eos_token_id=model.generation_config.eos_token_id,
    )
    asked = {"attention_mask": torch.ones_like(prompts), "generation_config": plain}
    assert torch.equal(former, model.generate(prompts, **asked))


def test_queries_that_share_keys_attend_together_and_see_the_same(
    llama: Callable,
) -> None:
    model = llama().eval()
    heads, kv_heads = (
        model.config.num_attention_heads,
        model.config.num_key_value_heads,
    )
    assert kv_heads < heads
    ids = torch.randint(0, model.config.vocab_size, (2, 9))
    shapes: list[tuple[int, ...]] = []
    plain = F.scaled_dot_product_attention

    def spy(query: torch.Tensor, *given: object, **more: object) -> torch.Tensor:
        shapes.append(tuple(query.shape[1:3]))
        return plain(query, *given, **more)

    def last_logits() -> torch.Tensor:
        before = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        return model(input_ids=ids[:, -1:], past_key_values=before).logits

    with torch.no_grad(), patch.object(F, "scaled_dot_product_attention", spy):
        as_it_is = last_logits()
        assert shapes[-1] == (heads, 1)
        with packed_queries():
            packed = last_logits()
        assert shapes[-1] == (kv_heads, heads // kv_heads)
        last_logits()
        assert shapes[-1] == (heads, 1)
    torch.testing.assert_close(packed, as_it_is)
