"""Tiny models for the tests of the library: built from configurations, one of them trained for a few seconds."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from typer.testing import CliRunner, Result

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.model.load import Loaded

VOCABULARY = 257  # the bytes, and the end of a text
CONTEXT = 64
TEXT = Path(__file__).parents[2] / "data" / "calibration.txt"
MakeLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *alphabet])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>")


@pytest.fixture(scope="session")
def llama() -> MakeLlama:
    """Make an untrained LLaMA whose every layer matters; the same arguments give the same weights."""

    def make(layers: int = 4, seed: int = 0, **options: Any) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        settings = {"initializer_range": 0.2, "tie_word_embeddings": False} | options
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=0,
            eos_token_id=0,
            **settings,
        )
        return LlamaForCausalLM(config).eval()

    return make


@pytest.fixture(scope="session")
def blocks() -> torch.Tensor:
    """Ten random blocks of twelve tokens: no whole number of batches of four."""
    return torch.randint(
        1, VOCABULARY, (10, 12), generator=torch.Generator().manual_seed(1)
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty thousand characters of a novel."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(TEXT.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def text_blocks(tokenizer: PreTrainedTokenizerFast, text_file: Path) -> torch.Tensor:
    """Return the novel in blocks of 48 tokens."""
    ids = torch.tensor(tokenizer(text_file.read_text(encoding="utf-8"))["input_ids"])
    return ids[: len(ids) // 48 * 48].view(-1, 48)


@pytest.fixture(scope="session")
def trained_model(llama: MakeLlama, text_blocks: torch.Tensor) -> LlamaForCausalLM:
    """Return six layers that have seen the novel briefly; far better than chance, which is ln 257 = 5.5."""
    model = llama(6, initializer_range=0.06, tie_word_embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = text_blocks[torch.randint(len(text_blocks) - 100, (16,), generator=order)]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 3
    return model.requires_grad_(False)


@pytest.fixture
def trained(trained_model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return the trained model, to do with as a test likes."""
    return copy.deepcopy(trained_model)


@pytest.fixture(scope="session")
def model_folder(
    trained_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the trained model and its tokenizer, saved."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    trained_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(trained: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Loaded:
    return Loaded(trained, tokenizer, "tiny", None, torch.float32)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, so that no params.yaml of the project is read."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # it would hide warnings from the other tests
    monkeypatch.setattr("elder.cli.options.prepare_libraries", lambda: None)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield folder
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def elder(here: Path, model_folder: Path, text_file: Path) -> Callable[..., Result]:
    """Run a command on the tiny model with few and short calibration blocks; what is given comes last and wins."""

    def run(
        command: str, *arguments: str | Path, model: str | Path = model_folder
    ) -> Result:
        given = [
            command,
            str(model),
            "--calibration",
            str(text_file),
            "--samples",
            "16",
            "--seq-len",
            "32",
        ]
        if "--ratio" not in arguments:
            given += ["--layers", "2"]
        if command == "compress":
            given += ["--set", "recover.epochs=2", "--set", "recover.batch=4"]
            if "--output" not in arguments:
                given += ["--output", "out"]
        return CliRunner().invoke(build_app(LIBRARY), [*given, *map(str, arguments)])

    return run
