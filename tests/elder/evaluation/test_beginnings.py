"""What texts begin with: a tiny model that saw its beginning-of-text token before every text needs it everywhere."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.data import choose_blocks, evaluation_blocks
from elder.errors import UserError
from elder.evaluation import repetition as own_text
from elder.evaluation.bench import random_ids
from elder.evaluation.perplexity import perplexity_of_text
from elder.evaluation.protocol import protocol
from elder.evaluation.tasks import _scorer
from elder.model.load import Loaded, load_model
from elder.model.tokens import first_tokens
from elder.params import Evaluate, Model, Params
from elder.settings import params_of_record
from elder.training.synthesis import choose_prompts

MODELS = Path(__file__).parents[3] / "models"
WORD = "abbabaaabbabbba"  # what follows a letter, only the place in the word can tell
BEGIN, CONTEXT = 0, 16  # the token, and a word behind it
Tokenizer = PreTrainedTokenizerFast
Add = Callable[[str], Tokenizer]


@pytest.fixture(scope="module")
def with_special(tokenizer: Tokenizer) -> Add:
    """Make a tokenizer that puts special tokens around a text by itself, as a template says."""

    def make(template: str) -> Tokenizer:
        plain = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        plain.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<|end|>", BEGIN)]
        )
        return Tokenizer(
            tokenizer_object=plain, bos_token="<|end|>", eos_token="<|end|>"
        )

    return make


@pytest.fixture(scope="module")
def folder(with_special: Add, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that learnt the word behind its beginning-of-text token, for a second, saved."""
    torch.manual_seed(0)
    tokenizer = with_special("<|end|> $A")
    config = GPT2Config(
        vocab_size=257,
        n_positions=CONTEXT,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=BEGIN,
        eos_token_id=BEGIN,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.tensor([tokenizer(WORD)["input_ids"]])
    assert ids.shape == (1, CONTEXT)
    for _ in range(60):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    made = tmp_path_factory.mktemp("models") / "begins"
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(WORD * 40)
    return path


@pytest.fixture(scope="module")
def begun(folder: Path) -> Loaded:
    return load_model(Model(name=str(folder), device="cpu"))


def test_the_token_is_what_the_tokenizer_puts_before_a_text(
    tokenizer: Tokenizer, with_special: Add
) -> None:
    assert first_tokens(tokenizer, "auto", "tiny") == ()
    assert first_tokens(with_special("$A <|end|>"), "auto", "tiny") == ()
    own = with_special("<|end|> $A <|end|>")
    assert first_tokens(own, "auto", "tiny") == (BEGIN,)
    assert first_tokens(own, True, "tiny") == (BEGIN,)
    assert first_tokens(own, False, "tiny") == ()
    two = with_special("<|end|> <|end|> $A")
    assert first_tokens(two, "auto", "tiny") == (BEGIN, BEGIN)
    silent = with_special("$A")
    assert first_tokens(silent, "auto", "tiny") == ()
    assert first_tokens(silent, True, "tiny") == (BEGIN,)
    with pytest.raises(UserError, match="'tiny' has no beginning-of-text token"):
        first_tokens(tokenizer, True, "tiny")


def test_the_bundled_models_have_none() -> None:
    names = [path.parent.name for path in MODELS.glob("*/tokenizer.json")]
    assert len(names) > 1
    for name in names:
        tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        assert first_tokens(tokenizer, "auto", name) == ()


def test_a_model_is_out_of_its_wits_without_its_token(folder: Path, text: Path) -> None:
    def measured(*overrides: str) -> dict[str, Any]:
        given = ["evaluate", str(folder), "--text", str(text), "--json", *overrides]
        return json.loads(CliRunner().invoke(build_app(LIBRARY), given).stdout)

    begun, bare = measured(), measured("--set", "calibration.bos=false")
    assert begun["perplexity"] < 1.1
    assert bare["perplexity"] > 5
    # forty words of fifteen letters; without the token, blocks of sixteen
    assert (begun["blocks"], begun["tokens"]) == (40, 600)
    assert (bare["blocks"], bare["tokens"]) == (37, 592)


def test_the_loss_of_the_token_is_not_counted(begun: Loaded, text: Path) -> None:
    found = perplexity_of_text(begun, text, CONTEXT, None, 8)
    ids = torch.tensor(
        [[BEGIN, *begun.tokenizer(WORD, add_special_tokens=False).input_ids]]
    )
    with torch.no_grad():
        logits = begun.model(ids).logits[0]
    assert found.nll == pytest.approx(
        float(F.cross_entropy(logits[:-1], ids[0, 1:])), rel=1e-5
    )
    # where two tokens begin a text, the second is not counted either
    begun = Loaded(
        begun.model, begun.tokenizer, "tiny", None, begun.dtype, bos=(BEGIN, BEGIN)
    )
    ids = torch.tensor(
        [[BEGIN, BEGIN, *begun.tokenizer("ab", add_special_tokens=False).input_ids]]
    )
    with torch.no_grad():
        logits = begun.model(ids).logits[0]
    path = text.with_name("short.txt")
    path.write_text("ab")
    found = perplexity_of_text(begun, path, 4, None, 8)
    assert found.nll == pytest.approx(
        float(F.cross_entropy(logits[1:-1], ids[0, 2:])), rel=1e-5
    )
    assert found.tokens == 2


def test_every_block_begins_so_and_holds_the_text_it_would(
    begun: Loaded, text: Path, tmp_path: Path
) -> None:
    tokenizer, first = begun.tokenizer, torch.full((6, 1), BEGIN)
    for blocks, bare in (
        (
            evaluation_blocks(text, tokenizer, 8, 45, (BEGIN,)),
            evaluation_blocks(text, tokenizer, 7, 45),
        ),
        (
            choose_blocks(text, tokenizer, 6, 8, 3, (BEGIN,)),
            choose_blocks(text, tokenizer, 6, 7, 3),
        ),
    ):
        assert torch.equal(blocks, torch.cat([first, bare], dim=1))
    path = tmp_path / "blocks.safetensors"
    save_file({"ids": bare}, path)
    assert torch.equal(choose_blocks(path, tokenizer, 6, 7, 3), bare)
    with pytest.raises(UserError, match=r"blocks that do not begin with \[0\]"):
        choose_blocks(path, tokenizer, 6, 7, 3, (BEGIN,))


def test_written_text_speed_and_own_text_begin_so(
    begun: Loaded, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = evaluation_blocks(text, begun.tokenizer, CONTEXT, None, begun.bos)
    blocks[:, 1:] = torch.arange(1, 16)
    prompts = choose_prompts(blocks, 100, 0, first=1)
    assert (prompts[:, 0] == BEGIN).all()
    assert set(prompts[:, 1].tolist()) == set(range(1, 16))  # from every place
    assert (random_ids(begun, 3, 5, 0)[:, 0] == BEGIN).all()
    assert not (random_ids(begun, 3, 5, 0)[:, 1:] == BEGIN).all()
    seen: list[torch.Tensor] = []

    def continued(
        _: Any, prompts: torch.Tensor, length: int, __: float
    ) -> torch.Tensor:
        seen.append(prompts)
        return torch.arange(length).expand(len(prompts), -1)

    monkeypatch.setattr(own_text, "continue_texts", continued)
    own_text.repetition(begun, begun, text, 16)
    assert all((ids[:, 0] == BEGIN).all() and ids.shape[1] == 5 for ids in seen)


def test_tasks_read_texts_that_begin_so_also_where_they_are_cut(
    begun: Loaded, text: Path
) -> None:
    scorer = _scorer(begun, 4)
    # two words and a half in windows of fifteen letters and one: each begins with the token
    long = (WORD * 3)[:38]
    (rolling,) = scorer.loglikelihood_rolling([SimpleNamespace(args=(long,))], True)
    ids = begun.tokenizer(long, add_special_tokens=False).input_ids
    by_hand = 0.0
    for window in (ids[:16], ids[16:32]):
        by_hand -= nll(begun, [BEGIN, *window[:-1]], window)
    # the last is filled up with what stands before it
    before, rest = ids[22:32], ids[32:]
    by_hand -= nll(begun, [BEGIN, *before, *rest[:-1]], rest)
    assert rolling == pytest.approx(by_hand, rel=1e-4)
    asked = [("", "ab"), ("ab", "b"), ("b" * 30, "ab")]
    found = scorer.loglikelihood([SimpleNamespace(args=pair) for pair in asked], True)
    letters = [begun.tokenizer(x, add_special_tokens=False).input_ids for x in "ab"]
    (a,), (b,) = letters
    cut = [BEGIN] + [
        b
    ] * 14  # sixteen are read: the token, fourteen, and the first answer
    expected = (
        nll(begun, [BEGIN, a], [a, b]),
        nll(begun, [BEGIN, a, b], [b]),
        nll(begun, [*cut, a], [a, b]),
    )
    for (score, _), wanted in zip(found, expected, strict=True):
        assert score == pytest.approx(-wanted, rel=1e-4)
    ids, mask = scorer.tok_batch_encode(["a", "abb" * 5], left_truncate_len=5)
    assert ids.tolist()[1] == [BEGIN, b, a, b, b]
    assert ids[0, -2:].tolist() == [BEGIN, a]
    assert mask.tolist() == [[0, 0, 0, 1, 1], [1] * 5]


def nll(begun: Loaded, read: list[int], answers: list[int]) -> float:
    """Return the loss in nats of the last tokens, each predicted from all that was read before it."""
    with torch.no_grad():
        logits = begun.model(torch.tensor([read])).logits[0, -len(answers) :]
    return float(F.cross_entropy(logits, torch.tensor(answers), reduction="sum"))


def test_the_protocol_names_it_and_stays_what_it_was_without(
    begun: Loaded, text: Path
) -> None:
    settings = Evaluate(in_domain=str(text), out_of_domain=str(text), tasks=[])
    named = protocol(settings, begun, 16)
    assert named.parts["bos"] == ["<|end|>"]
    bare = Loaded(begun.model, begun.tokenizer, "tiny", None, begun.dtype)
    assert set(named.parts) - set(protocol(settings, bare, 16).parts) == {"bos"}


def test_a_record_from_before_there_was_a_choice_was_made_without() -> None:
    tree = Params().model_dump(mode="json")
    assert params_of_record(tree).calibration.bos == "auto"
    del tree["calibration"]["bos"]
    assert params_of_record(tree).calibration.bos is False
