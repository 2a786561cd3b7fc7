"""The stages of dvc.yaml: where text comes from, what is refused, and that the same input gives the same bytes."""

import importlib
import json
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from elder.errors import UserError
from elder.params import Params
from elder.settings import load_params
from tasks import prepare, sources
from tests.elder.model.tiny_gguf import TOKENS, write

ROOT = Path(__file__).parents[2]
COMMIT = "0f" * 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Make a model folder with a configuration and a tokenizer of one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = decoders.ByteLevel()
    folder = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    LlamaConfig(max_position_embeddings=16).save_pretrained(folder)
    return folder


def run(tmp_path: Path, stages: str, *overrides: str) -> Path:
    """Run stages in order and return the folder of their results."""
    folder = tmp_path / "build"
    for stage in stages.split():
        prepare.STAGES[stage](load_params(None, list(overrides)), folder)
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_text_file_keeps_its_bytes_and_says_where_it_came_from(tmp_path, model):
    source = tmp_path / "novel.txt"
    source.write_bytes("Où est-il?\r\nLà.\n".encode())
    folder = run(
        tmp_path, "pin text", f"model.name={model}", f"calibration.source={source}"
    )
    assert (folder / "calibration.txt").read_bytes() == source.read_bytes()
    record = read(folder / "source.json")
    assert record["characters"] == 16  # "Où est-il?" 10, CR LF 2, "Là." 3, LF 1
    assert record["text_sha256"] == record["sha256"] == sources.digest([source])
    assert not list(folder.rglob("*.new"))


def test_folder_saved_by_datasets(tmp_path, model):
    rows = datasets.DatasetDict(
        train=datasets.Dataset.from_dict({"body": ["one", "two"]}),
        test=datasets.Dataset.from_dict({"body": ["x"]}),
    )
    rows.save_to_disk(str(tmp_path / "set"))
    given = [
        f"model.name={model}",
        f"calibration.source={tmp_path / 'set'}",
        "calibration.column=body",
    ]
    folder = run(tmp_path, "pin text", *given)
    assert (folder / "calibration.txt").read_text() == "one\n\ntwo"
    record = read(folder / "source.json")
    assert (record["kind"], record["split"], record["column"]) == (
        "folder",
        "train",
        "body",
    )


def test_folder_of_json_lines_is_read_only_as_far_as_the_blocks_need(tmp_path, model):
    (tmp_path / "set").mkdir()
    lines = "".join(json.dumps({"text": str(i) * 100}) + "\n" for i in range(10))
    (tmp_path / "set" / "train.jsonl").write_text(lines)
    (tmp_path / "set" / "validation.jsonl").write_text('{"text": "no"}\n')
    given = [f"model.name={model}", f"calibration.source={tmp_path / 'set'}"]
    # 2 blocks of 8 tokens, 5 characters each, 4 times over: 320 characters; documents of 100 and 3 times 102 pass it.
    folder = run(
        tmp_path, "pin text", *given, "calibration.samples=2", "calibration.seq_len=8"
    )
    assert (folder / "calibration.txt").read_text() == "\n\n".join(
        str(i) * 100 for i in range(4)
    )


def test_folder_of_text_files_keeps_lines_together(tmp_path, model):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("one\ntwo")
    (tmp_path / "set" / "b.txt").write_text("three")
    folder = run(
        tmp_path,
        "pin text",
        f"model.name={model}",
        f"calibration.source={tmp_path / 'set'}",
    )
    assert (folder / "calibration.txt").read_text() == "one\ntwo\n\nthree"


def refused(tmp_path: Path, stages: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        run(tmp_path, stages, *overrides)
    assert not list((tmp_path / "build").glob("calibration*"))  # nothing half-written
    return str(caught.value)


def test_missing_file_names_the_nearest(tmp_path, model):
    (tmp_path / "novel.txt").write_text("x")
    message = refused(
        tmp_path,
        "pin",
        f"model.name={model}",
        f"calibration.source={tmp_path / 'novle.txt'}",
    )
    assert "there is no calibration text" in message
    assert f"did you mean '{tmp_path / 'novel.txt'}'" in message


def test_empty_file(tmp_path, model):
    (tmp_path / "empty.txt").write_text(" \n\n")
    given = [f"model.name={model}", f"calibration.source={tmp_path / 'empty.txt'}"]
    assert "is empty" in refused(tmp_path, "pin text", *given)


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"abcde\xff", 5),
        (
            "aaaé".encode() + b"\xe9bc",
            5,
        ),  # a three-byte sequence that is broken off, after one across two chunks
        (b"aaaaaaa\xc3", 7),  # the file ends inside a character
    ],
)
def test_not_utf8_says_at_which_byte(tmp_path, model, monkeypatch, content, offset):
    monkeypatch.setattr(prepare, "CHUNK", 4)
    (tmp_path / "latin.txt").write_bytes(content)
    given = [f"model.name={model}", f"calibration.source={tmp_path / 'latin.txt'}"]
    assert f"at byte {offset};" in refused(tmp_path, "pin text", *given)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("calibration.split=trian", "has no split 'trian'; did you mean 'train'?"),
        ("calibration.column=txet", "has no column 'txet'; did you mean 'text'?"),
        ("calibration.column=count", "holds int, not text"),
        ("calibration.config=large", "'large' not found"),
    ],
)
def test_unknown_names_in_a_dataset(tmp_path, model, override, sentence):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "a", "count": 1}\n')
    (tmp_path / "set" / "test.jsonl").write_text('{"text": "b", "count": 1}\n')
    given = [f"model.name={model}", f"calibration.source={tmp_path / 'set'}", override]
    assert sentence in refused(tmp_path, "pin text", *given)


def test_offline_hub_is_refused_at_once(tmp_path, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(
        tmp_path, "pin", f"model.name={model}", "calibration.source=allenai/c4"
    )
    assert "HF_HUB_OFFLINE is set" in message
    run(
        tmp_path,
        "pin",
        f"model.name={model}",
        "calibration.source=allenai/c4",
        f"calibration.revision={COMMIT}",
    )


def test_a_model_of_the_hub_may_have_the_name_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused(tmp_path, "pin", "model.name=owner/notes.md")
    assert message.startswith("the model 'owner/notes.md' is on the Hub")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("none", "there is no model folder"), ("bare", "holds no tokenizer")],
)
def test_model_without_tokenizer(tmp_path, name, sentence):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    assert sentence in refused(tmp_path, "pin", f"model.name={tmp_path / name}")


def test_blocks_are_the_same_bytes_each_time_and_carry_their_making(tmp_path, model):
    source = tmp_path / "novel.txt"
    # block i is one letter, 16 times
    source.write_text("".join(chr(97 + i) * 16 for i in range(8)))
    given = [
        f"model.name={model}",
        f"calibration.source={source}",
        "calibration.samples=4",
    ]
    path = run(tmp_path, "pin text blocks", *given) / "calibration.safetensors"
    first = path.read_bytes()
    run(tmp_path, "blocks", *given)
    assert path.read_bytes() == first
    run(tmp_path, "blocks", *given, "calibration.seed=1")
    assert path.read_bytes() != first
    with safe_open(path, "pt") as file:
        ids, made = file.get_tensor("ids"), json.loads(file.metadata()["calibration"])
    # auto: the model's context of 16
    assert (str(ids.dtype), tuple(ids.shape)) == ("torch.int32", (4, 16))
    assert all(len(set(row)) == 1 for row in ids.tolist())
    assert (made["seed"], made["samples"], made["seq_len"]) == (1, 4, 16)
    assert made["text_sha256"] == sources.digest([source])


def test_evaluation_texts_are_checked(tmp_path, model):
    (tmp_path / "in.txt").write_text("in")
    given = [f"model.name={model}", f"evaluate.in_domain={tmp_path / 'in.txt'}"]
    given.append(f"evaluate.out_of_domain={tmp_path / 'out.txt'}")
    assert "there is no text file" in refused(tmp_path, "pin", *given)
    (tmp_path / "out.txt").write_bytes(b"\xff")
    assert "at byte 0;" in refused(tmp_path, "pin evaluation", *given)
    assert (tmp_path / "build" / "in_domain.txt").read_text() == "in"


def test_command_line_ends_with_one_sentence_and_status_2(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "params.yaml").write_text(f"model: {{name: {tmp_path}/none}}\n")
    given = [
        "prepare",
        "pin",
        "--params",
        str(tmp_path / "params.yaml"),
        "--output",
        str(tmp_path / "build"),
    ]
    monkeypatch.setattr(sys, "argv", given)
    assert prepare.main() == 2
    assert capsys.readouterr().err.startswith("error: there is no model folder")


def test_params_yaml_names_every_key_with_its_default():
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert tree == json.loads(load_params().model_dump_json())


def test_every_stage_names_its_code_its_parameters_and_things_that_exist():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    made = {out for stage in stages.values() for out in stage["outs"]}
    assert set(stages) == set(prepare.STAGES)
    for name, stage in stages.items():
        launcher, _, module, argument = stage["cmd"].removeprefix("sh ").split()
        assert (ROOT / launcher).is_file()
        assert importlib.import_module(module) is prepare
        assert argument == name
        assert "tasks/prepare.py" in stage["deps"]
        for dependency in stage["deps"]:
            assert dependency in made or (ROOT / dependency).is_file()
        for parameter in stage["params"]:
            section, key = parameter.split(".")
            assert key in type(getattr(Params(), section)).model_fields


def test_the_tokenizer_of_a_gguf_file_is_pinned_by_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = write(tmp_path / "tiny.gguf")
    source = tmp_path / "novel.txt"
    source.write_text("a t" * 100)
    given = (f"model.name={model}", f"calibration.source={source}")
    given += ("calibration.samples=2", "calibration.seq_len=8")
    given += (f"evaluate.in_domain={source}", f"evaluate.out_of_domain={source}")
    folder = run(tmp_path, "pin text blocks", *given)
    pinned = read(folder / "pins" / "tokenizer.json")
    assert pinned == {
        "kind": "file",
        "source": str(model),
        "sha256": sources.digest([model]),
    }
    with safe_open(folder / "calibration.safetensors", "pt") as blocks:
        ids = blocks.get_tensor("ids").unique().tolist()
    assert ids == sorted([TOKENS.index("a"), TOKENS.index("Ġt")])


def test_a_tokenizer_larger_than_the_embedding_is_refused_before_any_work(
    tmp_path, model
):
    LlamaConfig(max_position_embeddings=16, vocab_size=200).save_pretrained(model)
    source = tmp_path / "novel.txt"
    source.write_text("words " * 100)
    given = [f"model.name={model}", f"calibration.source={source}"]
    sentence = r"has 256 tokens and the model's embedding 200: token '.*' \(200\) has"
    with pytest.raises(UserError, match=sentence):
        run(tmp_path, "pin text blocks", *given)
