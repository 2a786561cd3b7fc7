"""Models in GGUF files: read as they are, made into stock checkpoints, and refused where something would be lost."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from typer.testing import CliRunner, Result

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.errors import UserError
from elder.files import file_digest
from elder.model.check import check_model
from elder.model.load import load_model, weights_digest
from elder.model.published import dequantise
from elder.params import Model
from tests.elder.model.tiny_gguf import (
    CHAT,
    HIDDEN,
    NAMES,
    TOKENS,
    Change,
    weights,
    write,
)

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf")


def load(path: Path) -> Any:
    return load_model(Model(name=str(path), device="cpu"))


def test_weights_are_those_of_the_file_dequantised_in_bfloat16(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load(tiny)
    state = loaded.model.state_dict()
    for name, weight in weights().items():
        kind = Kind.Q8_0 if name == "token_embd" else Kind.Q4_1
        # rows are quantised one by one, so that their order does not matter here
        expected = gguf.dequantize(gguf.quantize(weight, kind), kind)
        if name == "token_embd":
            place = "model.embed_tokens"
        else:
            _, layer, own = name.split(".")
            place = f"model.layers.{layer}.{NAMES[own]}"
        assert torch.equal(state[f"{place}.weight"], torch.tensor(expected).bfloat16())
    assert loaded.dtype == torch.bfloat16
    assert isinstance(loaded.model.config, LlamaConfig)
    assert loaded.dequantised_from == "Q4_1, Q8_0"
    assert loaded.file_sha256 == file_digest(tiny)
    assert loaded.tokenizer("a t")["input_ids"] == [
        TOKENS.index("a"),
        TOKENS.index("Ġt"),
    ]
    assert loaded.tokenizer.chat_template == CHAT
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(
        "reading tiny.Q4_1.gguf, dequantised from Q4_1, Q8_0, into 'build/models/gguf-"
    )
    assert said.endswith("in bfloat16, once")


def test_a_file_is_read_once_and_draws_no_random_numbers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    first = weights_digest(load(tiny).model), torch.rand(1)
    monkeypatch.setattr(dequantise, "_make", None)
    torch.manual_seed(0)
    assert (weights_digest(load(tiny).model), torch.rand(1)) == first


def run(here: Path, command: str, model: Path, *options: str) -> Result:
    """Run a command of the library with a few short calibration blocks, two of the layers to go."""
    text = here / "text.txt"
    text.write_text("It was a bright cold day in April, and the clocks\n" * 80)
    given = [command, str(model), "--calibration", str(text), "--samples", "8"]
    given += ["--seq-len", "32", "--layers", "2", "--method", "shortgpt", "--json"]
    done = CliRunner().invoke(build_app(LIBRARY), [*given, *options])
    assert done.exit_code == 0, done.stderr
    return done


def test_a_result_is_a_stock_checkpoint_whose_record_says_what_it_was_made_from(
    tiny: Path, here: Path
) -> None:
    run(here, "compress", tiny, "--recover", "none", "--output", "out")
    out = here / "out"
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["num_hidden_layers"], config["dtype"]) == (2, "bfloat16")
    told = json.loads((out / "elder.json").read_text())["model"]
    dense = load(tiny)
    assert (told["name"], told["digest"]) == (str(tiny), weights_digest(dense.model))
    assert told["file_sha256"] == file_digest(tiny)
    assert told["dequantised_from"] == "Q4_1, Q8_0"
    assert "dequantised from" in (out / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert (model.dtype, hasattr(model, "hf_quantizer")) == (torch.bfloat16, False)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == CHAT
    ids = tokenizer("It was a t")["input_ids"]
    assert ids == dense.tokenizer("It was a t")["input_ids"]
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_the_folder_of_one_file_is_that_file(tiny: Path, here: Path) -> None:
    """They score the same layers the same."""
    both = [run(here, "select", model).stdout for model in (tiny, tiny.parent)]
    first, second = (json.loads(said)["scores"] for said in both)
    assert first == second


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def cut_short(path: Path) -> None:
    os.truncate(path, 200)


def overwrite(path: Path) -> None:
    path.write_bytes(b"PK" + path.read_bytes()[2:])


def many_tensors(path: Path) -> None:
    """Let the header promise more than there is."""
    data = bytearray(path.read_bytes())
    data[8:16] = struct.pack("<Q", 1 << 40)
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [cut, cut_short, many_tensors])
def test_a_damaged_file_is_refused(tmp_path: Path, spoil: Callable) -> None:
    path = write(tmp_path / "bad.gguf")
    spoil(path)
    with pytest.raises(UserError, match="is cut short or damaged; fetch it again"):
        check_model(str(path), Model())


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.gguf")
    check_model(str(path), Model())  # what was read of it is remembered
    overwrite(path)
    with pytest.raises(UserError, match="does not begin with the letters GGUF"):
        check_model(str(path), Model())


def biases(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.attn_q.bias", np.ones(HIDDEN, dtype=np.float32))


def factors(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32))


def scaled(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)


def integers(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.codes.weight", np.ones(HIDDEN, dtype=np.int8))


def parts(writer: gguf.GGUFWriter) -> None:
    writer.add_uint16("split.count", 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (biases, "holds 140032 weights, and .* has 139968: some would be lost"),
        (factors, r"scales its rotary positions \(rope_freqs.weight\)"),
        (scaled, r"scales its rotary positions \(rope.scaling.type yarn\)"),
        (integers, "holds weights of type I8, which cannot be dequantised"),
        (parts, "is one of 3 parts; join them"),
    ],
)
def test_what_transformers_would_leave_out_in_silence_is_refused(
    tmp_path: Path, change: Change, sentence: str
) -> None:
    path = write(tmp_path / "odd.gguf", change=change)
    with pytest.raises(UserError, match=sentence):
        check_model(str(path), Model())


def test_an_unknown_architecture_is_refused_with_those_that_are_known(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "odd.gguf", architecture="rwkv7")
    with pytest.raises(
        UserError, match="architecture 'rwkv7', and .* gemma3, .* llama"
    ):
        check_model(str(path), Model())


def test_without_the_package_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "new.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the package gguf; .* 'elder\[gguf\]'"):
        check_model(str(path), Model())


def test_a_missing_file_is_no_model_of_the_hub(here: Path) -> None:
    for name in ("there.gguf", "owner/there.gguf"):
        with pytest.raises(UserError, match=f"there is no GGUF file {name!r}"):
            load(Path(name))


def test_of_several_files_one_must_be_named(tiny: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).symlink_to(tiny)
    with pytest.raises(UserError, match="holds 2 GGUF files; name one of them"):
        load(tmp_path)
