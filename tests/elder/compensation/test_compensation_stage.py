"""The stage ``compensate``: what a user asks for by ``--compensate``, what is recorded, and going on after a cut."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from elder import params
from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.compression.job import Stage
from elder.compression.recipes import apply_method
from elder.compression.results import StageResult
from elder.compression.stages import STAGES


@pytest.fixture
def run(
    model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Compress the tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("elder.cli.options.prepare_libraries", lambda: None)

    def compress(*arguments: str) -> Result:
        given = [
            "compress",
            str(model_folder),
            "--calibration",
            str(text_file),
            "--samples",
            "16",
            "--seq-len",
            "32",
        ]
        given += ["--layers", "2", "--output", "out", "--json", *arguments]
        deterministic = torch.are_deterministic_algorithms_enabled()
        done = CliRunner().invoke(build_app(LIBRARY), given)
        torch.use_deterministic_algorithms(deterministic)
        return done

    return compress


@pytest.mark.parametrize("method", ["merge", "magnitude", "linear", "ghost", "flatten"])
def test_compress_compensates_and_records_it(
    run: Callable[..., Result], model_folder: Path, tmp_path: Path, method: str
) -> None:
    done = run("--method", "shortgpt", "--compensate", method)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["recipe"]["compensate"]["method"],
        found["compensation"]["method"],
    ) == (
        method,
        method,
    )
    assert (
        found["tokens_seen"],
        found["optimizer_steps"],
        found["compensation"]["tokens"] % (16 * 32),
    ) == (0, 0, 0)
    dense, shallow = (
        load_file(f / "model.safetensors") for f in (model_folder, tmp_path / "out")
    )
    name = "model.layers.{}.mlp.down_proj.weight"
    same = [
        torch.equal(shallow[name.format(p)], dense[name.format(i)])
        for p, i in enumerate(found["kept"])
    ]
    assert same.count(False) > 0
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers
        == 4
    )


def test_a_refit_is_counted_as_training(run: Callable[..., Result]) -> None:
    done = run("--method", "shortgpt", "--compensate", "refit")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    mended = found["compensation"]
    # one layer of four and the head; rounded up for each layer that learnt
    counted = mended["share"] * mended["layer_tokens"]
    assert counted <= found["tokens_seen"] <= counted + len(mended["gaps"])
    steps = sum(gap["steps"] for gap in mended["gaps"])
    assert found["optimizer_steps"] == steps > 0


def test_recovery_starts_from_the_compensated_model_and_goes_on_after_a_cut(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        "--compensate",
        "linear",
        "--set",
        "recover.epochs=1",
        "--set",
        "recover.lr=0.01",
    )

    def cut(*_: Any) -> StageResult:
        raise KeyboardInterrupt

    def cut_in(name: str) -> tuple[Stage, ...]:
        return tuple(
            replace(one, run=cut) if one.name == name else one for one in STAGES
        )

    for stage, left in (
        ("compensate", ["learn", "remove"]),
        ("recover", ["compensate", "learn", "remove"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("elder.compression.compress.STAGES", cut_in(stage))
            assert "interrupted" in run(*arguments).stderr
        assert {path.stem for path in (tmp_path / ".out.work").glob("*.json")} >= set(
            left
        )
    with monkeypatch.context() as patch:
        # it is done, and not done again
        patch.setattr("elder.compression.compress.STAGES", cut_in("compensate"))
        done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    found, whole = (
        json.loads(done.stdout),
        json.loads(run(*arguments, "--output", "whole").stdout),
    )
    assert found["sha256"] == whole["sha256"]
    assert found["compensation"] == whole["compensation"]
    plain = json.loads(
        run(*arguments, "--compensate", "none", "--output", "plain").stdout
    )
    assert plain["compensation"] is None
    # the first step's, before it changes anything
    assert plain["curve"][0]["loss"] > found["curve"][0]["loss"]


def test_a_wrong_name_is_refused_before_any_work(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    done = run("--compensate", "magnitud")
    assert done.exit_code == 2
    assert (
        "error: there is no compensation 'magnitud'; did you mean 'magnitude'?"
        in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_recipes_say_what_follows_the_removal() -> None:
    given = params.Params(compensate=params.Compensate(method="linear"))
    assert apply_method(given, None).compensate.method == "linear"
    assert apply_method(given, "shortgpt").compensate.method == "none"
    assert apply_method(given, "laco").compensate.method == "merge"
