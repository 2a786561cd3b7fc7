"""Two processes make what one makes: the same layers, text and losses, weights within rounding; and one goes on from
where the other was killed.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from elder.compression.job import Job, open_job
from elder.compression.stages import STAGES
from elder.files import read_json
from elder.model import head
from elder.model.forward import next_token_losses
from elder.model.load import Loaded, put_together
from elder.params import Params
from elder.settings import validate
from elder.training import checkpoint
from tests.elder.parallel.scenes import (
    BLOCKS,
    DIES,
    PORTION,
    SCENES,
    load,
    perplexity,
    selections,
)

PROGRAM = Path(__file__).with_name("scenes.py")
ROOT = Path(__file__).parents[3]
CLOSE = 1e-4  # to weights whose root mean square is 0.06; training moves them by a hundred times as much
DONE = 5  # steps of the final training, of which there are eleven: twelve less what refit took
RECOVER = {"epochs": 3, "batch": 4, "lr": 1e-2, "optimizer": "adamw"}
NAMES = "learn,regularise,remove,compensate,recover"


class Stopped(Exception):
    """A training that is broken off."""


def run(*arguments: str | Path, dies: str | None = None) -> Any:
    """Run the program as a user would: it starts two processes by itself."""
    more = {"PYTHONPATH": str(ROOT)} | ({DIES: dies} if dies else {})
    return subprocess.run(
        [sys.executable, PROGRAM, *map(str, arguments)],
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def settings(model_folder: Path) -> Params:
    return validate(
        {
            "model": {"name": str(model_folder), "device": "cpu"},
            "calibration": {"samples": 16, "seq_len": 32},
            "select": {"layers": 2},
            "recover": RECOVER,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def by_two(settings: Params, folder: Path) -> Path:
    """Return a file of the same parameters, for two processes."""
    import yaml

    path = folder / "params.yaml"
    tree = settings.model_dump(mode="json") | {"launch": {"processes": 2}}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def _every_step() -> Iterator[None]:
    """Let checkpoints be written after every step, here as in the processes."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "CHECKPOINT_EVERY", -1.0)
        yield
    torch.use_deterministic_algorithms(deterministic)


def in_one(settings: Params, text: Path, work: Path) -> Job:
    """Run all stages in this process."""
    with open_job(work, settings, text, STAGES) as job:
        job.run_all()
    return job


@pytest.fixture(scope="module")
def expected(settings: Params, text_file: Path, folder: Path) -> Path:
    """Return the work folder of one process that was never broken off."""
    return in_one(settings, text_file, folder / "one").work


def apart(one: Path, other: Path) -> float:
    """Return the largest difference between two models' weights."""
    mine, its = (load_file(path / "model.safetensors") for path in (one, other))
    assert mine.keys() == its.keys()
    return max((mine[name] - its[name]).abs().max().item() for name in mine)


def test_a_killed_process_ends_the_stage_and_one_process_goes_on(
    settings: Params, by_two: Path, folder: Path, text_file: Path, expected: Path
) -> None:
    work = folder / "two"
    stage = ("stage", "job", NAMES, "--work", work, "--params", by_two)
    killed = run(*stage, "--calibration", text_file, dies=f"1:{DONE}")
    assert killed.returncode == 3, killed.stderr
    last = killed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: process 1 of 2 (0 to 1) was killed (SIGKILL), as")
    assert "Traceback" not in killed.stderr
    for name in ("learn", "remove"):
        mine, its = (read_json(place / f"{name}.json") for place in (expected, work))
        different = {"seconds", "peak_memory_bytes", "flops"}
        assert its["flops"] >= mine["flops"]  # of both processes
        assert {k: v for k, v in mine.items() if k not in different} == {
            k: v for k, v in its.items() if k not in different
        }
    alone, written = (
        load_file(p / "recover.synthetic.safetensors") for p in (expected, work)
    )
    # one process keeps what the dense model makes of the calibration blocks, too
    assert torch.equal(alone["ids"][: len(written["ids"])], written["ids"])

    left = work / "recover.checkpoint.parts"
    assert len(list(left.glob("*.safetensors"))) == 2
    job = in_one(settings, text_file, work)
    assert not left.exists()
    assert job.run("recover").spent.optimizer_steps == 11
    assert apart(expected / "recover", work / "recover") < CLOSE
    assert apart(expected / "remove", work / "recover") > 100 * CLOSE


def test_two_processes_go_on_from_where_one_was_and_make_what_one_makes(
    settings: Params,
    by_two: Path,
    model_folder: Path,
    text_file: Path,
    expected: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work, save = tmp_path / "broken", checkpoint.Checkpoint.save_when_due

    def stop(self: Any, model: Any, optimizer: Any, spent: Any) -> None:
        save(self, model, optimizer, spent)
        if spent.optimizer_steps == DONE:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "save_when_due", stop)
        with pytest.raises(Stopped):
            in_one(settings, text_file, work)
    assert (work / "recover.checkpoint").is_file()
    output = tmp_path / "ended.pt"
    places = (by_two, model_folder, text_file, work, output)
    # they go on with the sixth step: if they began anew, one would be killed at the fifth
    ended = run("scenes", *places, dies=f"0:{DONE}")
    assert ended.returncode == 0, ended.stderr
    assert apart(expected / "recover", work / "recover") < CLOSE
    theirs = torch.load(output, weights_only=False)
    monkeypatch.setattr(head, "positions_at_once", lambda *_: PORTION)
    # the same bits: each batch goes through whole, and sums are taken in order
    assert theirs["losses"].tolist() == perplexity(model_folder, text_file)
    assert theirs["selections"] == selections(model_folder)
    # what the first does while the others wait is done on a whole model
    assert torch.equal(theirs["alone"], next_token_losses(load(model_folder), BLOCKS))
    for name, scene in SCENES.items():
        mine = scene(model_folder).state_dict()
        assert mine.keys() == theirs[name].keys()
        for key, weight in mine.items():
            assert torch.allclose(weight, theirs[name][key], atol=CLOSE), (name, key)


def test_what_processes_refuse_is_said_once(by_two: Path, tmp_path: Path) -> None:
    work, nothing = tmp_path / "work", tmp_path / "nothing.txt"
    stage = ("stage", "job", "learn", "--work", work, "--params", by_two)
    refused = run(*stage, "--calibration", nothing)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.count("nothing.txt") == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("error: ")


def test_a_model_that_is_put_together_keeps_its_head_tied(llama: Callable) -> None:
    divided, fresh = (llama(seed=seed, tie_word_embeddings=True) for seed in (1, 2))
    loaded = Loaded(divided, None, "tied", None, torch.float32)
    again = partial(replace, loaded, model=fresh)
    made = put_together(replace(loaded, again=again)).model
    assert made is fresh
    assert made.lm_head.weight is made.get_input_embeddings().weight
    assert torch.equal(made.lm_head.weight, divided.lm_head.weight)
