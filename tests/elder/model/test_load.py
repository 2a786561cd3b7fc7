"""Loading: what does not fit, what no machine could build, and what cannot be read."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import Result

import elder.compression.job  # noqa: F401 - takes choose_blocks before a test replaces it
from elder.errors import UserError
from elder.evaluation.evaluate import evaluate
from elder.evaluation.perplexity import perplexity_of_text
from elder.evaluation.repetition import repetition
from elder.model.check import check_model
from elder.model.load import Loaded, check_tokens, load_model
from elder.params import Evaluate, Model


@pytest.mark.parametrize("moment", ["from_pretrained", "to"])
def test_a_model_that_does_not_fit_is_said_in_a_sentence(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
        )

    monkeypatch.setattr(LlamaForCausalLM, moment, full)
    sentence = r"^the model of '.*tiny' does not fit into memory \(8 bytes more were asked for\); make it"
    with pytest.raises(UserError, match=sentence):
        load_model(Model(name=str(model_folder), device="cpu"))


def configured(base: Path, folder: Path, **fields: Any) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("num_hidden_layers", 50_000_000, 10_000),
        ("num_attention_heads", 10**9, 10_000),
        ("hidden_size", 1 << 40, 1 << 24),
        ("vocab_size", 1 << 60, 1 << 24),
    ],
)
def test_what_no_machine_could_build_is_refused_at_once(
    model_folder: Path, tmp_path: Path, field: str, value: int, limit: int
) -> None:
    folder = configured(model_folder, tmp_path / "bad", **{field: value})
    started = time.monotonic()
    with pytest.raises(
        UserError, match=f"asks for {field} = {value}; at most {limit} can be"
    ):
        load_model(Model(name=str(folder)))
    assert time.monotonic() - started < 5


def test_a_count_in_a_nested_configuration_is_looked_at_too(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "bad", text_config={"n_layer": 10_001})
    with pytest.raises(UserError, match="asks for n_layer = 10001; at most 10000"):
        load_model(Model(name=str(folder)))


def test_a_configuration_that_is_nested_too_deep(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "bad")
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(
        UserError, match=r"bad/config\.json is nested deeper than the 100 levels"
    ):
        load_model(Model(name=str(folder)))


def test_more_layers_are_seen_before_any_work(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "bad", num_hidden_layers=5)
    with pytest.raises(UserError, match=r"has 5 layers by its configuration, and"):
        check_model(str(folder), Model(name=str(folder)))


def test_a_stale_file_beside_shards(model_folder: Path, tmp_path: Path) -> None:
    folder = configured(model_folder, tmp_path / "two")
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(
        tmp_path / "shards", max_shard_size="40KB"
    )
    for path in (tmp_path / "shards").glob("model*"):
        shutil.copy(path, folder)
    sentence = r"two sets of weights: model\.safetensors, which transformers would read, and \d+ files, such as model-0"
    with pytest.raises(UserError, match=sentence):
        check_model(str(folder), Model(name=str(folder)))


def test_files_that_are_not_read_are_named(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = configured(model_folder, tmp_path / "more")
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"newer, it may be")
    check_model(str(folder), Model(name=str(folder)))
    said = capsys.readouterr().err
    named = "holds consolidated.safetensors and 1 more beside its weights, unread"
    assert named in said
    assert "those are model.safetensors" in said


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_what_git_lfs_has_not_fetched_is_named(
    name: str, model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "clone")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(UserError, match=f"{name}' is Git LFS's pointer.*git lfs pull"):
        check_model(str(folder), Model(name=str(folder)))


def test_a_tokenizer_with_code_of_its_own_is_asked_for(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "own")
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    with pytest.raises(UserError, match="add --set model.trust_remote_code=true"):
        load_model(Model(name=str(folder), device="cpu"))


def test_weights_of_more_layers_than_the_configuration_names(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "bad", num_hidden_layers=5)
    with pytest.raises(
        UserError, match=r"has 5 layers by its configuration, and .*layers\.5\."
    ):
        load_model(Model(name=str(folder)))


def test_a_weight_beside_the_layers_that_nothing_asks_for_is_left_out(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    extra = tensors["model.norm.weight"].clone()
    save_file(tensors | {"model.other.weight": extra}, folder / "model.safetensors")
    assert load_model(Model(name=str(folder))).num_layers == 6


def test_tokens_that_the_model_does_not_know(loaded: Loaded, tmp_path: Path) -> None:
    check_tokens(loaded, torch.tensor([[0, 256]]), tmp_path / "chat.txt")
    with pytest.raises(
        UserError, match=r"chat\.txt' holds token 257, and 'tiny' knows 257 tok"
    ):
        check_tokens(loaded, torch.tensor([[0, 257]]), tmp_path / "chat.txt")


def test_every_way_to_a_text_looks_at_its_tokens(
    loaded: Loaded, text_file: Path
) -> None:
    loaded.model.resize_token_embeddings(100)
    texts = {"in_domain": str(text_file), "out_of_domain": str(text_file)}
    for look in (
        lambda: perplexity_of_text(loaded, text_file, 16, 64, 1),
        lambda: evaluate(loaded, Evaluate(**texts, tasks=[]), 16),
        lambda: repetition(loaded, loaded, text_file, 1),
    ):
        with pytest.raises(UserError, match="and 'tiny' knows 100 tokens"):
            look()


def test_select_looks_at_the_tokens_of_its_text(
    elder: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elder.data.choose_blocks", lambda *_: torch.tensor([[0, 300]]))
    found = elder("select", "--method", "shortgpt")
    assert found.exit_code == 2
    assert "holds token 300" in found.stderr


def test_a_tokenizer_with_tokens_that_the_model_has_no_embedding_for(
    model_folder: Path, tmp_path: Path
) -> None:
    for number, add in enumerate(
        (
            lambda one: one.add_tokens(["<new>"]),
            lambda one: one.add_special_tokens({"pad_token": "<new>"}),
        )
    ):
        folder = configured(model_folder, tmp_path / str(number))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        add(tokenizer)
        tokenizer.save_pretrained(folder)
        sentence = r"has 258 tokens and the model's embedding 257: token '<new>' \(257\) has none"
        with pytest.raises(UserError, match=sentence):
            load_model(Model(name=str(folder)))


def test_a_special_token_that_no_text_needs_may_lack_an_embedding(
    model_folder: Path, tmp_path: Path
) -> None:
    folder = configured(model_folder, tmp_path / "images")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    found = load_model(Model(name=str(folder)))
    text = tmp_path / "text.txt"
    text.write_text("Here is one: <image>, and what stands behind it.")
    with pytest.raises(UserError, match=r"holds token 257 \('<image>'\), and"):
        perplexity_of_text(found, text, 16, None, 1)
