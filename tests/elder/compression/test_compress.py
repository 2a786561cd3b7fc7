"""``elder select`` and ``elder compress`` as a user meets them: results, repetition and interruption."""

import copy
import hashlib
import json
import math
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import Result

from elder.compression.job import Job
from elder.compression.results import StageResult
from elder.compression.stages import STAGES
from elder.model.layers import find_layers
from elder.model.load import load_model, weights_digest
from elder.params import Model
from elder.recovery import recovering
from elder.recovery.base import Student
from elder.training import checkpoint
from elder.training.flops import head_size, passed, size
from elder.training.losses import divergences
from elder.training.tune import LR_GRID

Elder = Callable[..., Result]


def never(_: Job) -> StageResult:
    raise AssertionError("this stage is done, and should not run again")


pytestmark = pytest.mark.usefixtures("here")


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- select ---


@pytest.mark.parametrize("method", ["shortgpt", "sleb", "elder"])
def test_select_prints_exactly_one_json_object(
    elder: Elder, model_folder: Path, here: Path, method: str
) -> None:
    before = bytes_of(model_folder)
    done = elder("select", "--method", method, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (found["method"], found["model"], found["num_layers"]) == (
        method,
        str(model_folder),
        6,
    )
    assert len(found["removed"]) == 2
    assert found["tokens"] == 16 * 32
    assert found["seconds"] > 0
    assert found["peak_memory_bytes"] > 0
    assert [i for one in found["scores"]["rounds"] for i in one["removed"]] == found[
        "removed"
    ]
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


def test_compress_leaves_an_ordinary_model_with_its_record(
    elder: Elder, model_folder: Path, here: Path
) -> None:
    done = elder("compress", "--json", "--compensate", "none")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    out = here / "out"
    assert [path.name for path in here.iterdir()] == ["out"]
    names = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "elder.json",
        "README.md",
    }
    assert names <= {path.name for path in out.iterdir()}
    record = json.loads((out / "elder.json").read_text())
    assert {key: found[key] for key in record if key != "model"} == {
        k: v for k, v in record.items() if k != "model"
    }
    assert found["sha256"] == hashlib.sha256(bytes_of(out)).hexdigest()
    assert found["removed"] == json.loads(elder("select", "--json").stdout)["removed"]
    assert sorted(found["removed"] + found["kept"]) == list(range(6))
    assert (
        found["recipe"]["recover"]["mode"],
        found["recipe"]["select"]["layers"],
    ) == (
        "distil",
        2,
    )
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.num_hidden_layers == 4
    dense = load_model(Model(name=str(model_folder))).model
    tried = [(trial["optimizer"], trial["lr"]) for trial in found["search"]]
    # layer weights: 0.3 passes over 16 blocks in two rounds, 2 steps of one block each. Recovery: two epochs of four
    # blocks a step are 8 steps: trials of at least one step, and what they leave
    assert found["optimizer_steps"] == 2 * 2 + 8
    assert found["tokens_seen"] == (2 * 2 + 8 * 4) * 32
    # what the recovery alone takes, the dense model's head beside it; its layers make states of 32 blocks
    recovered = 8 * 4 * 32 * (6 * passed(model) + 2 * head_size(model))
    recovered += 32 * 32 * 2 * passed(dense)
    # the choice passes 4 blocks there and back, the head nearly, and 16 that are written
    chosen = 4 * 32 * 4 * size(find_layers(dense)) + 16 * 32 * 2 * passed(dense)
    assert found["flops"] > recovered + 0.8 * chosen
    assert found["flops"] < recovered + 12 * chosen
    # two passes see as many written blocks once as there are of calibration; layers are tried on as many before
    assert found["tokens_generated"] == (16 + 16) * 32
    assert tried[:2] == [("adamw", lr) for lr in LR_GRID[1:3]]
    assert tried[2] in [("adamw", lr) for lr in (LR_GRID[0], LR_GRID[3])]
    assert tried[3:] in ([], [("muon", 0.005)], [("muon", 0.01)])
    assert (
        found["parameters_after"]
        == found["trainable_parameters"]
        == sum(p.numel() for p in model.parameters())
    )
    assert found["parameters_before"] == sum(p.numel() for p in dense.parameters())
    assert record["model"]["digest"] == weights_digest(dense)
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert (
        f"Layers {found['removed'][0]}, {found['removed'][1]} of the dense model went"
        in card
    )


def test_what_refit_takes_is_part_of_the_budget(elder: Elder, here: Path) -> None:
    done = elder("compress", "--json", "--set", "recover.lr=0.01")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    mended = found["compensation"]
    assert mended["method"] == "refit"
    # a sixteenth of two passes over 16 blocks of 32; each token of four blocks a step counts as the layer's share
    steps = [gap["steps"] for gap in mended["gaps"]]
    share = mended["share"]
    most = max(1, int(2 * 16 * 32 / 16 / (len(steps) * share * 4 * 32)))
    assert set(steps) == {most}
    took = len(steps) * math.ceil(share * most * 4 * 32)
    left = int((2 * 16 * 32 - took) / (4 * 32))
    assert 0 < left < 8
    assert found["optimizer_steps"] == 4 + sum(steps) + left
    assert found["tokens_seen"] == 4 * 32 + took + left * 4 * 32


def test_where_refit_takes_all_nothing_is_recovered(elder: Elder, here: Path) -> None:
    asked = ("--set", "recover.epochs=0.01", "--set", "recover.lr=0.01")
    done = elder("compress", *asked)
    assert done.exit_code == 0, done.stderr
    assert "nothing is left of recover.epochs 0.01 after refit" in done.stderr
    record = json.loads((here / "out" / "elder.json").read_text())
    assert {point["stage"] for point in record["curve"]} <= {"learn", "compensate"}


@pytest.mark.parametrize(
    "recipe", [[], ["--method", "elder", "--set", "regularise.epochs=1"]]
)
def test_the_same_seed_gives_the_same_bytes(
    elder: Elder, here: Path, recipe: list[str]
) -> None:
    for name in ("one", "two"):
        done = elder("compress", *recipe, "--output", name)
        assert done.exit_code == 0, done.stderr
    assert bytes_of(here / "one") == bytes_of(here / "two")
    elder("compress", *recipe, "--output", "three", "--seed", "1", "--recover", "train")
    assert bytes_of(here / "three") != bytes_of(here / "one")


def test_the_largest_seed_leads_through_all_that_draws(elder: Elder) -> None:
    # selection, both trainings, the text that the dense model writes, and adapters
    drawing = [
        *("--method", "elder", "--recover", "distil"),
        *("--set", "regularise.epochs=1"),
        *("--set", "recover.distil.synthetic=1"),
        *("--set", "recover.adapter_rank=2"),
    ]
    largest = str(2**63 - 1)
    done = elder("compress", *drawing, "--seed", largest)
    assert done.exit_code == 0, done.output


def test_without_recovery_the_kept_layers_are_untouched(
    elder: Elder, model_folder: Path, here: Path
) -> None:
    done = elder("compress", "--recover", "none", "--compensate", "none", "--json")
    found = json.loads(done.stdout)
    # what learning the layer weights took, and no more
    assert (
        found["optimizer_steps"],
        found["tokens_seen"],
        found["trainable_parameters"],
    ) == (4, 4 * 32, 0)
    dense, shallow = (
        load_file(model_folder / "model.safetensors"),
        load_file(here / "out" / "model.safetensors"),
    )
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
    done = elder(
        "compress", "--recover", "none", "--set", "gate.min_prompt_speedup=null"
    )
    assert done.exit_code == 0, done.stderr
    lineage = json.loads((here / "out" / "elder.json").read_text())["lineage"]
    assert lineage["params"]["gate"]["min_prompt_speedup"] is None
    assert lineage["params"]["recover"]["mode"] == "none"


def test_the_record_names_the_device_that_was_used(
    elder: Elder, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_name", lambda *_: "a GPU that stands idle"
    )
    done = elder("compress", "--recover", "none", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    lineage = json.loads((here / "out" / "elder.json").read_text())["lineage"]
    assert lineage["device"] == (platform.processor() or "cpu")


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


def test_the_model_loads_and_generates_where_elder_is_not(
    elder: Elder, here: Path
) -> None:
    assert elder("compress").exit_code == 0
    command = [sys.executable, "-I", "-c", ALONE, str(here / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "31"]


# --- interruption ---


@pytest.mark.parametrize(
    "at", [2, 7]
)  # in the search for a learning rate, and in the run itself
def test_an_interrupted_compression_goes_on_to_the_same_bytes(
    elder: Elder, here: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_EVERY", -1.0)
    longer = ("--set", "recover.epochs=4")
    assert elder("compress", "--output", "whole", *longer).exit_code == 0
    calls: list[int] = []

    def interrupted(*logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return divergences(*logits)

    with monkeypatch.context() as patch:
        patch.setattr("elder.recovery.distil.divergences", interrupted)
        done = elder("compress", "--output", "again", *longer)
    assert done.exit_code not in (0, 1)
    assert "Traceback" not in done.stderr
    assert "interrupted" in done.stderr
    assert not (here / "again").exists()
    # what is done need not be done again
    assert (here / ".again.work" / "learn.json").exists()

    with monkeypatch.context() as patch:
        done_before = replace(STAGES[0], run=never)
        patch.setattr("elder.compression.compress.STAGES", (done_before, *STAGES[1:]))
        done = elder("compress", "--output", "again", *longer)
    assert done.exit_code == 0, done.stderr
    assert bytes_of(here / "again") == bytes_of(here / "whole")
    assert sorted(path.name for path in here.iterdir()) == ["again", "whole"]
    records = [
        json.loads((here / name / "elder.json").read_text())
        for name in ("again", "whole")
    ]
    for key in ("tokens_seen", "optimizer_steps", "curve", "search", "sha256"):
        assert records[0][key] == records[1][key]


def test_work_of_other_parameters_is_not_taken_up(
    elder: Elder, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert elder("compress", "--output", "whole", "--seed", "1").exit_code == 0

    def interrupted(*_: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("elder.recovery.distil.divergences", interrupted)
        elder("compress", "--output", "again", "--seed", "0")
    assert (here / ".again.work").exists()
    assert elder("compress", "--output", "again", "--seed", "1").exit_code == 0
    assert bytes_of(here / "again") == bytes_of(here / "whole")


@pytest.mark.parametrize("method", ["none", "refit", "magnitude"])
def test_with_adapters_the_dense_models_weights_are_there_once(
    elder: Elder, here: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked = ["--set", "recover.adapter_rank=2", "--set", "recover.lr=0.01"]
    asked += ["--compensate", method]
    held: list[int] = []

    def seen(student: Student, *given: Any) -> Any:
        mine, its = list(student.model.parameters()), list(student.dense.parameters())
        once = {one.data_ptr(): one.nbytes for one in (*mine, *its)}
        held.append(sum(once.values()) - sum(one.nbytes for one in its))
        return recovering(student, *given)

    with monkeypatch.context() as patch:
        patch.setattr("elder.compression.stages.recovering", seen)
        done = elder("compress", "--output", "shared", "--json", *asked)
    assert done.exit_code == 0, done.stderr
    layer = 7744 * 4
    if method == "magnitude":  # of layers after a gap alone, what writes to the stream
        assert held[0] < 4 * layer
    else:  # the layers that learnt by themselves
        mended = json.loads(done.stdout)["compensation"] or {"gaps": []}
        assert held[0] == sum(gap["kept"] for gap in mended["gaps"]) * layer
    # and what comes out is what two copies give
    with monkeypatch.context() as patch:
        patch.setattr("elder.compression.memory.twin", copy.deepcopy)
        assert elder("compress", "--output", "apart", *asked).exit_code == 0
    assert bytes_of(here / "shared") == bytes_of(here / "apart")
