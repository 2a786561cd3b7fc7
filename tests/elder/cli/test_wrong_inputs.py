"""What can go wrong with ``elder select`` and ``elder compress``: one clear sentence, and nothing left behind."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner, Result

from elder.cli.app import build_app
from elder.cli.services import LIBRARY

Elder = Callable[..., Result]
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("here")


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
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif kind == "a tensor less":
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.3.mlp.up_proj.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    elif kind == "remote code":
        config |= {
            "model_type": "novel",
            "auto_map": {"AutoModelForCausalLM": "modeling_novel.Novel"},
        }
    elif kind == "unknown type":
        config |= {"model_type": "novel"}
    elif kind == "a list":
        config = []
    elif kind == "classifier":
        BertForSequenceClassification(
            BertConfig(
                vocab_size=257,
                hidden_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=8,
            )
        ).save_pretrained(folder)
    elif kind == "encoder and decoder":
        T5ForConditionalGeneration(
            T5Config(
                vocab_size=257, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2
            )
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
def test_models_that_cannot_be_used(
    elder: Elder, model_folder: Path, here: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "bad"
    damaged_model(kind, model_folder, folder)
    for command in ("select", "compress"):
        refused(elder(command, model=folder), here, [], BAD_MODELS[kind])


def test_a_known_family_that_also_brings_code_needs_none(
    elder: Elder, model_folder: Path, here: Path
) -> None:
    folder = here / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "other.Other"}})
    )
    done = elder("select", "--method", "shortgpt", model=folder)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no calibration file"),
        (b"", "is empty"),
        (b"too short", "has 9 tokens, less than one block of 32"),
        (b"caf\xe9 au lait, " * 200, "is not UTF-8 text"),
        (
            b"enough for some blocks " * 10,
            "holds 7 blocks of 32 tokens, 16 were asked for",
        ),
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
def test_ratios_that_cannot_be(
    elder: Elder, here: Path, ratio: str, sentence: str
) -> None:
    for command in ("select", "compress"):
        refused(elder(command, "--ratio", ratio), here, [], sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "shortgtp"], "no method 'shortgtp'; did you mean 'shortgpt'?"),
        (
            ["--set", "select.method=slebb"],
            "no selection method 'slebb'; did you mean 'sleb'?",
        ),
        (
            ["--set", "select.ration=0.3"],
            r"select\.ration: unknown key, did you mean 'ratio'?",
        ),
        (
            ["--recover", "distill"],
            r"no recovery 'distill'; did you mean 'distil'\? valid: distil, none, train",
        ),
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
def test_other_options_that_cannot_be(
    elder: Elder, here: Path, arguments: list[str], sentence: str
) -> None:
    done = elder("compress", *arguments)
    # layers were chosen by then, and need not be again
    left = [".out.work"] if "diverged" in sentence else []
    refused(done, here, left, sentence)


def test_an_unknown_task_names_the_nearest(model_folder: Path, here: Path) -> None:
    pytest.importorskip("lm_eval")
    arguments = [
        "evaluate",
        str(model_folder),
        "--tasks",
        "blimpp",
        "--task-data",
        str(ROOT / "data" / "tasks"),
    ]
    refused(
        CliRunner().invoke(build_app(LIBRARY), arguments),
        here,
        [],
        "no task 'blimpp'.* did you mean 'blimp'",
    )


def test_an_output_folder_that_holds_something_is_left_alone(
    elder: Elder, here: Path
) -> None:
    (here / "out").mkdir()
    (here / "out" / "precious.txt").write_text("mine")
    refused(elder("compress"), here, ["out"], "'out' already holds something")
    assert [path.name for path in (here / "out").iterdir()] == ["precious.txt"]


def test_an_output_below_a_file_is_refused(elder: Elder, here: Path) -> None:
    (here / "file").write_text("mine")
    refused(
        elder("compress", "--output", "file/out"),
        here,
        ["file"],
        "no folder that can be written to",
    )


def test_an_empty_output_folder_is_used(elder: Elder, here: Path) -> None:
    (here / "out").mkdir()
    assert elder("compress", "--recover", "none").exit_code == 0
    assert (here / "out" / "elder.json").exists()


@pytest.mark.parametrize(
    "wrapped", [False, True]
)  # safetensors has a type of its own for it
def test_a_full_disk_leaves_no_output(
    elder: Elder, here: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    from safetensors import SafetensorError
    from transformers import LlamaForCausalLM

    def full(_: Any, folder: Path, **__: Any) -> None:
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        if wrapped:
            raise SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", full)
        done = elder("compress")
    refused(done, here, [".out.work"], "No space left on device.*; free some space")
    assert not list((here / ".out.work").glob("*partial*"))
    assert elder("compress").exit_code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system in memory, to be filled; only root may, and not everywhere."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = (
        subprocess.run(mount, capture_output=True, text=True)
        if shutil.which("mount")
        else None
    )
    if done is None or done.returncode:
        pytest.skip(
            f"no file system can be mounted here: {done.stderr.strip() if done else 'there is no mount'}"
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, free: int) -> None:
    """Leave so many bytes free."""
    (disk / "ballast").unlink(missing_ok=True)
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - free))


def half_written(disk: Path) -> list[str]:
    return [
        path.name
        for path in disk.rglob("*")
        if path.name.endswith((".new", ".partial"))
    ]


# the shallower model takes 190 kB: no file fits; the work folder's model does not; it does, but the output does not
@pytest.mark.parametrize("free", [0, 64_000, 300_000])
def test_a_disk_that_is_full(elder: Elder, small_disk: Path, free: int) -> None:
    fill(small_disk, free)
    output = ["--recover", "none", "--output", small_disk / "out"]
    left = ["ballast"] if free == 0 else [".out.work", "ballast"]
    refused(
        elder("compress", *output),
        small_disk,
        left,
        "No space left on device|disk is full",
    )
    assert half_written(small_disk) == []
    (small_disk / "ballast").unlink()
    assert elder("compress", *output).exit_code == 0
    assert [path.name for path in small_disk.iterdir()] == ["out"]


def test_a_real_process_on_a_full_disk(
    small_disk: Path, model_folder: Path, text_file: Path
) -> None:
    fill(small_disk, 64_000)
    command = [
        sys.executable,
        "-m",
        "elder",
        "compress",
        str(model_folder),
        "--calibration",
        str(text_file),
    ]
    command += [
        "--samples",
        "8",
        "--seq-len",
        "32",
        "--layers",
        "2",
        "--set",
        "recover.epochs=1",
    ]
    command += ["--output", str(small_disk / "out"), "--json"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    said = done.stderr.splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:]
    assert said[-1].endswith("free some space or name another folder")
    assert sorted(path.name for path in small_disk.iterdir()) == [
        ".out.work",
        "ballast",
    ]
    (small_disk / "ballast").unlink()
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    weights = (small_disk / "out" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == found["sha256"]
    assert [path.name for path in small_disk.iterdir()] == ["out"]


def test_a_real_process_says_one_line_and_exits_with_2(here: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "elder",
        "compress",
        "nowhere/at-all/here",
        "--output",
        "out",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: there is no model folder 'nowhere/at-all/here'"
    )
    assert done.stderr.count("\n") == 1
    assert list(here.iterdir()) == []
