"""``elder select`` and ``elder compress`` as a user meets them: results, repetition, interruption and wrong inputs."""

import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner, Result

from elder import train as training
from elder.cli import app
from elder.losses import distillation_loss
from elder.model import load_model, weights_digest
from elder.params import Model
from elder.tune import LR_GRID

Elder = Callable[..., Result]
TASKS = Path(__file__).parents[2] / "data" / "tasks"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, so that no params.yaml of the project is read."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("elder.cli.quiet_libraries", lambda: None)  # it would hide warnings from the other tests
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield folder
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def elder(model_folder: Path, text_file: Path) -> Elder:
    """Run a command on the tiny model with few and short calibration blocks; what is given comes last and wins."""

    def run(command: str, *arguments: str | Path, model: str | Path = model_folder) -> Result:
        given = [command, str(model), "--calibration", str(text_file), "--samples", "16", "--seq-len", "32"]
        if "--ratio" not in arguments:
            given += ["--layers", "2"]
        if command == "compress":
            given += ["--set", "recover.epochs=2", "--set", "recover.batch=4"]
            if "--output" not in arguments:
                given += ["--output", "out"]
        return CliRunner().invoke(app, [*given, *map(str, arguments)])

    return run


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- select ---


@pytest.mark.parametrize("method", ["shortgpt", "sleb", "elder"])
def test_select_prints_exactly_one_json_object(elder: Elder, model_folder: Path, here: Path, method: str) -> None:
    before = bytes_of(model_folder)
    done = elder("select", "--method", method, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (found["method"], found["model"], found["num_layers"]) == (method, str(model_folder), 6)
    assert len(found["removed"]) == 2
    assert found["tokens"] == 16 * 32
    assert found["seconds"] > 0
    assert found["peak_memory_bytes"] > 0
    assert [i for one in found["scores"]["rounds"] for i in one["removed"]] == found["removed"]
    again = json.loads(elder("select", "--method", method, "--json").stdout)
    assert (again["removed"], again["scores"]) == (found["removed"], found["scores"])
    assert bytes_of(model_folder) == before
    assert list(here.iterdir()) == []


def test_select_without_json_says_it_in_words(elder: Elder) -> None:
    done = elder("select", "--method", "shortgpt")
    assert re.search(r"removed, in order: \d, \d\n$", done.stdout)
    assert "round 1, block influence by layer: 0." in done.stdout


def test_a_ratio_says_how_many(elder: Elder) -> None:
    done = elder("select", "--method", "shortgpt", "--ratio", "0.5", "--json")
    assert len(json.loads(done.stdout)["removed"]) == 3


# --- compress ---


def test_compress_leaves_an_ordinary_model_with_its_record(elder: Elder, model_folder: Path, here: Path) -> None:
    done = elder("compress", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    out = here / "out"
    assert [path.name for path in here.iterdir()] == ["out"]
    names = {"config.json", "model.safetensors", "tokenizer.json", "elder.json", "README.md"}
    assert names <= {path.name for path in out.iterdir()}
    record = json.loads((out / "elder.json").read_text())
    assert {key: found[key] for key in record if key != "model"} == {k: v for k, v in record.items() if k != "model"}
    assert found["sha256"] == hashlib.sha256(bytes_of(out)).hexdigest()
    assert found["removed"] == json.loads(elder("select", "--json").stdout)["removed"]
    assert sorted(found["removed"] + found["kept"]) == list(range(6))
    assert (found["recipe"]["recover"]["mode"], found["recipe"]["select"]["layers"]) == ("distil", 2)
    # two epochs of 16 blocks of 32 tokens, four blocks a step: 8 steps, of which each trial may round one up
    assert 8 - 4 <= found["optimizer_steps"] <= 8 + 4
    assert found["tokens_seen"] == found["optimizer_steps"] * 4 * 32
    assert [trial["lr"] for trial in found["search"]] == list(LR_GRID)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == 4
    assert found["parameters_after"] == found["trainable_parameters"] == sum(p.numel() for p in model.parameters())
    dense = load_model(Model(name=str(model_folder))).model
    assert found["parameters_before"] == sum(p.numel() for p in dense.parameters())
    assert record["model"]["digest"] == weights_digest(dense)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert f"Layers {found['removed'][0]}, {found['removed'][1]} of the dense model went" in card


@pytest.mark.parametrize("recipe", [[], ["--method", "elder", "--set", "regularise.epochs=1"]])
def test_the_same_seed_gives_the_same_bytes(elder: Elder, here: Path, recipe: list[str]) -> None:
    for name in ("one", "two"):
        done = elder("compress", *recipe, "--output", name)
        assert done.exit_code == 0, done.stderr
    assert bytes_of(here / "one") == bytes_of(here / "two")
    elder("compress", *recipe, "--output", "three", "--seed", "1", "--recover", "train")
    assert bytes_of(here / "three") != bytes_of(here / "one")


def test_without_recovery_the_kept_layers_are_untouched(elder: Elder, model_folder: Path, here: Path) -> None:
    done = elder("compress", "--recover", "none", "--json")
    found = json.loads(done.stdout)
    assert (found["optimizer_steps"], found["tokens_seen"], found["trainable_parameters"]) == (0, 0, 0)
    dense, shallow = load_file(model_folder / "model.safetensors"), load_file(here / "out" / "model.safetensors")
    for place, index in enumerate(found["kept"]):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(shallow[name.format(place)], dense[name.format(index)])


def test_a_16_bit_model_stays_one(elder: Elder, model_folder: Path, here: Path) -> None:
    folder = here / "half"
    loaded = load_model(Model(name=str(model_folder), dtype="bfloat16"))
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    done = elder("compress", model=folder)
    assert done.exit_code == 0, done.stderr
    weights = load_file(here / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_what_was_set_to_null_stays_so_beside_recover(elder: Elder, here: Path) -> None:
    done = elder("compress", "--recover", "none", "--set", "gate.min_prompt_speedup=null")
    assert done.exit_code == 0, done.stderr
    lineage = json.loads((here / "out" / "elder.json").read_text())["lineage"]
    assert lineage["params"]["gate"]["min_prompt_speedup"] is None
    assert lineage["params"]["recover"]["mode"] == "none"


ALONE = """
import sys
sys.modules.update(dict.fromkeys(["elder", "tasks", "flows"]))
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (c.from_pretrained(sys.argv[1]) for c in (AutoTokenizer, AutoModelForCausalLM))
ids = tokenizer("It was the ", return_tensors="pt").input_ids
options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
cached, plain = (model.generate(ids, use_cache=cache, **options) for cache in (True, False))
assert cached.tolist() == plain.tolist()
print(model.config.num_hidden_layers, cached.shape[1])
"""


def test_the_model_loads_and_generates_where_elder_is_not(elder: Elder, here: Path) -> None:
    assert elder("compress").exit_code == 0
    command = [sys.executable, "-I", "-c", ALONE, str(here / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "31"]


# --- interruption ---


@pytest.mark.parametrize("at", [2, 7])  # in the search for a learning rate, and in the run itself
def test_an_interrupted_compression_goes_on_to_the_same_bytes(
    elder: Elder, here: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", -1.0)
    assert elder("compress", "--output", "whole").exit_code == 0
    calls: list[int] = []

    def interrupted(*logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return distillation_loss(*logits)

    with monkeypatch.context() as patch:
        patch.setattr("elder.recover.distillation_loss", interrupted)
        done = elder("compress", "--output", "again")
    assert done.exit_code not in (0, 1)
    assert "Traceback" not in done.stderr
    assert "interrupted" in done.stderr
    assert not (here / "again").exists()
    assert (here / ".again.work" / "learn.json").exists()  # what is done need not be done again

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules["elder.stages"].RUNNERS, "learn", None)
        done = elder("compress", "--output", "again")
    assert done.exit_code == 0, done.stderr
    assert bytes_of(here / "again") == bytes_of(here / "whole")
    assert sorted(path.name for path in here.iterdir()) == ["again", "whole"]
    records = [json.loads((here / name / "elder.json").read_text()) for name in ("again", "whole")]
    for key in ("tokens_seen", "optimizer_steps", "curve", "search", "sha256"):
        assert records[0][key] == records[1][key]


def test_work_of_other_parameters_is_not_taken_up(elder: Elder, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert elder("compress", "--output", "whole", "--seed", "1").exit_code == 0

    def interrupted(*_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("elder.recover.distillation_loss", interrupted)
        elder("compress", "--output", "again", "--seed", "0")
    assert (here / ".again.work").exists()
    assert elder("compress", "--output", "again", "--seed", "1").exit_code == 0
    assert bytes_of(here / "again") == bytes_of(here / "whole")


# --- wrong inputs ---


def refused(done: Result, folder: Path, before: list[str], sentence: str) -> None:
    """Check that one clear sentence came, exit status 2, no traceback, and nothing was left behind."""
    assert done.exit_code == 2, (done.exit_code, done.stderr, done.exception)
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def damaged_model(kind: str, good: Path, folder: Path) -> None:
    """Make the folder of a model that cannot be used."""
    if kind == "missing":
        return
    folder.mkdir()
    if kind == "empty":
        return
    shutil.copytree(good, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    if kind == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif kind == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "half the weights":
        content = bytes_of(folder)
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif kind == "a tensor less":
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.3.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    elif kind == "remote code":
        config |= {"model_type": "novel", "auto_map": {"AutoModelForCausalLM": "modeling_novel.Novel"}}
    elif kind == "unknown type":
        config |= {"model_type": "novel"}
    elif kind == "a list":
        config = []
    elif kind == "classifier":
        BertForSequenceClassification(
            BertConfig(vocab_size=257, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
        ).save_pretrained(folder)
    elif kind == "encoder and decoder":
        T5ForConditionalGeneration(
            T5Config(vocab_size=257, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
        ).save_pretrained(folder)
    if kind not in {"classifier", "encoder and decoder"}:
        (folder / "config.json").write_text(json.dumps(config))
    if kind == "not JSON":
        (folder / "config.json").write_text("{")


BAD_MODELS = {
    "missing": "there is no model folder",
    "empty": "is empty; it must hold",
    "no tokenizer": "has no tokenizer",
    "pickle": "has only pickle weights",
    "no weights": "has no weights",
    "half the weights": "cannot be loaded",
    "a tensor less": "lack 1 tensors, such as model.layers.3.mlp.up_proj.weight",
    "remote code": "needs code that comes with it",
    "unknown type": "cannot be loaded",
    "not JSON": "is not valid JSON",
    "a list": "holds no configuration",
    "classifier": "is a BertForSequenceClassification, not a causal language model",
    "encoder and decoder": "is a T5ForConditionalGeneration, not a causal language model",
}


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_models_that_cannot_be_used(elder: Elder, model_folder: Path, here: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "bad"
    damaged_model(kind, model_folder, folder)
    for command in ("select", "compress"):
        refused(elder(command, model=folder), here, [], BAD_MODELS[kind])


def test_a_known_family_that_also_brings_code_needs_none(elder: Elder, model_folder: Path, here: Path) -> None:
    folder = here / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "other.Other"}}))
    done = elder("select", "--method", "shortgpt", model=folder)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no calibration file"),
        (b"", "is empty"),
        (b"too short", "has 9 tokens, less than one block of 32"),
        (b"caf\xe9 au lait, " * 200, "is not UTF-8 text"),
        (b"enough for some blocks " * 10, "holds 7 blocks of 32 tokens, 16 were asked for"),
    ],
)
def test_calibration_texts_that_cannot_be_used(
    elder: Elder, here: Path, tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    for command in ("select", "compress"):
        refused(elder(command, "--calibration", path), here, [], sentence)


@pytest.mark.parametrize(
    ("ratio", "sentence"),
    [
        ("0", r"select\.ratio = 0\.0: should be greater than 0"),
        ("1", r"select\.ratio = 1\.0: should be less than 1"),
        ("-0.25", r"select\.ratio = -0\.25: should be greater than 0"),
        ("nan", r"select\.ratio = nan: should be a finite number"),
        ("0.01", "0 of 6 layers cannot be removed; remove 1 to 5"),
        ("0.99", "6 of 6 layers cannot be removed; remove 1 to 5"),
    ],
)
def test_ratios_that_cannot_be(elder: Elder, here: Path, ratio: str, sentence: str) -> None:
    for command in ("select", "compress"):
        refused(elder(command, "--ratio", ratio), here, [], sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "shortgtp"], "no method 'shortgtp'; did you mean 'shortgpt'?"),
        (["--set", "select.method=slebb"], "no selection method 'slebb'; did you mean 'sleb'?"),
        (["--set", "select.ration=0.3"], r"select\.ration: unknown key, did you mean 'ratio'?"),
        (["--recover", "distill"], r"recover\.mode = 'distill': should be 'none', 'train' or 'distil'"),
        (["--layers", "6"], "6 of 6 layers cannot be removed; remove 1 to 5"),
        (["--ratio", "0.5", "--layers", "2"], "--layers and --ratio were both given"),
        (["--seq-len", "65"], "longer than the model's context of 64"),
        (["--device", "warp"], "device 'warp' is not available here"),
        (["--set", "select.protect=[0, 1, 2, 3, 4]"], "2 layers should go, but with"),
        (["--set", "select.protect=[6]"], "cannot protect layer 6"),
        (["--params", "none.yaml"], "there is no parameter file 'none.yaml'"),
        (["--set", "recover.lr=1e30"], "recover diverged"),
    ],
)
def test_other_options_that_cannot_be(elder: Elder, here: Path, arguments: list[str], sentence: str) -> None:
    done = elder("compress", *arguments)
    left = [".out.work"] if "diverged" in sentence else []  # layers were chosen by then, and need not be again
    refused(done, here, left, sentence)


def test_an_unknown_task_names_the_nearest(model_folder: Path, here: Path) -> None:
    pytest.importorskip("lm_eval")
    arguments = ["evaluate", str(model_folder), "--tasks", "blimpp", "--task-data", str(TASKS)]
    refused(CliRunner().invoke(app, arguments), here, [], "no task 'blimpp'.* did you mean 'blimp'")


def test_an_output_folder_that_holds_something_is_left_alone(elder: Elder, here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "precious.txt").write_text("mine")
    refused(elder("compress"), here, ["out"], "'out' already holds something")
    assert [path.name for path in (here / "out").iterdir()] == ["precious.txt"]


def test_an_output_below_a_file_is_refused(elder: Elder, here: Path) -> None:
    (here / "file").write_text("mine")
    refused(elder("compress", "--output", "file/out"), here, ["file"], "no folder that can be written to")


def test_an_empty_output_folder_is_used(elder: Elder, here: Path) -> None:
    (here / "out").mkdir()
    assert elder("compress", "--recover", "none").exit_code == 0
    assert (here / "out" / "elder.json").exists()


@pytest.mark.parametrize("wrapped", [False, True])  # safetensors has a type of its own for it
def test_a_full_disk_leaves_no_output(elder: Elder, here: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool) -> None:
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    def full(_: Any, folder: Path, **__: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        if wrapped:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        done = elder("compress")
    refused(done, here, [".out.work"], "No space left on device.*; free some space")
    assert not list((here / ".out.work").glob("*partial*"))
    assert elder("compress").exit_code == 0


def test_a_real_process_says_one_line_and_exits_with_2(here: Path) -> None:
    command = [sys.executable, "-m", "elder", "compress", "nowhere/at-all/here", "--output", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no model folder 'nowhere/at-all/here'")
    assert done.stderr.count("\n") == 1
    assert list(here.iterdir()) == []
