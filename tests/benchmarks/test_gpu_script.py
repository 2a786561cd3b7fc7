"""The GPU measurements, with a tiny shape on the CPU: every part, its figures, interruption, and a bare machine."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from gpu_report import (  # noqa: E402
    FROZEN,
    TRAINED,
    Results,
    flops_per_token,
    peak_flops,
    sleb_passes,
    summary,
)
from gpu_stages import Bench, shape_of  # noqa: E402

from elder.errors import UserError  # noqa: E402

STAGES = {
    "select": ["select, shortgpt", "select, elder", "select, sleb"],
    "regularise": ["regularise, adapters", "regularise, all weights"],
    "recover": ["remove", "recover, adapters", "recover, all weights"],
    "speed": ["speed, 25%", "speed, 50%"],
    "default": ["default, tiny"],
    "train": ["train"],
}


@pytest.fixture(scope="module", autouse=True)
def _as_it_was() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        # it would hide warnings from the other tests
        patch.setattr(gpu, "prepare_libraries", lambda: None)
        yield
    torch.use_deterministic_algorithms(deterministic)


def run(part: str, out: Path, *options: str | Path) -> dict[str, Any]:
    """Run one part in this process; returns the records of all stages so far."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys,
            "argv",
            ["gpu.py", part, "--shape", "tiny", "--out", str(out), *map(str, options)],
        )
        gpu.main()
    return json.loads((out / "results.json").read_text())["stages"]


def numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers(value)
    elif isinstance(tree, int | float):
        yield tree


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short books, two of them with the names that the training holds out."""
    folder = tmp_path_factory.mktemp("books")
    text = (ROOT / "data" / "calibration.txt").read_text(encoding="utf-8")
    for index, name in enumerate(
        ["emma", "the-adventures-of-sherlock-holmes", "another"]
    ):
        (folder / f"{name}.txt").write_text(
            text[index * 5000 : (index + 1) * 5000], encoding="utf-8"
        )
    return folder


@pytest.fixture(scope="module")
def out(books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all parts, one after the other, into one folder."""
    folder = tmp_path_factory.mktemp("gpu")
    for part in STAGES:
        run(part, folder, "--text", books, "--work", folder / "work")
    return folder


def test_every_part_gives_finite_figures_and_no_utilisation_on_a_cpu(out: Path) -> None:
    tree = json.loads((out / "results.json").read_text())
    assert list(tree["stages"]) == [name for names in STAGES.values() for name in names]
    assert (tree["shape"], tree["date"][:2], "torch" in tree["packages"]) == (
        "tiny",
        "20",
        True,
    )
    for name, record in tree["stages"].items():
        assert "error" not in record, record
        assert all(math.isfinite(value) for value in numbers(record)), name
        assert record.get("mfu") is None
        if "blocks" in record:
            assert (record["blocks"], record["seconds_for_all_blocks"]) == (
                8,
                record["seconds"],
            )
            assert (
                min(
                    record["seconds"],
                    record["peak_memory_bytes"],
                    record["model_flops"],
                )
                > 0
            )
    regularised, recovered = (
        tree["stages"][f"{stage}, all weights"] for stage in ("regularise", "recover")
    )
    # 3 and 6 epochs of 8 blocks of 32 tokens; a layer has 2176 weights, the head 1024; attention 1024 a layer
    forward = 2 * (8 * 2176 + 1024) + 8 * 1024
    assert regularised["model_flops"] == 3 * 8 * 32 * 3 * forward
    student = 2 * (6 * 2176 + 1024) + 6 * 1024
    # the dense model's layers see each block once, its head is there in each step
    once = 2 * 8 * 2176 + 8 * 1024
    assert recovered["model_flops"] == 8 * 32 * (6 * (3 * student + 2 * 1024) + once)
    assert (
        tree["stages"]["speed, 50%"]["ratio"]["parameters"]
        < tree["stages"]["speed, 25%"]["ratio"]["parameters"]
        < 1
    )
    assert [point["step"] for point in tree["stages"]["train"]["log"]] == [2, 4]


def test_the_summary_says_all_of_it(out: Path) -> None:
    text = (out / "summary.md").read_text()
    assert text == summary(json.loads((out / "results.json").read_text()))
    assert text.startswith("# A tiny shape, on ")
    for name in STAGES["select"] + STAGES["regularise"]:
        assert f"| {name} | 8 of 8 | " in text
    assert text.count("| 2 of 8 | ") == text.count("| 4 of 8 | ") == 3
    assert "extrapolated" not in text
    assert "MFU: model FLOPs over seconds" in text


def test_what_is_measured_is_not_measured_again(out: Path) -> None:
    before = (out / "results.json").read_bytes()
    assert run("speed", out) == json.loads(before)["stages"]
    assert (out / "results.json").read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_part_goes_on(tmp_path: Path) -> None:
    select = Bench.select

    def interrupted(bench: Bench, method: str) -> dict[str, Any]:
        if method == "elder":
            raise KeyboardInterrupt
        return select(bench, method)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "select", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("select", tmp_path)
    first = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert list(first) == STAGES["select"][:1]
    after = run("select", tmp_path)
    assert list(after) == STAGES["select"]
    assert after["select, shortgpt"] == first["select, shortgpt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ..."
            ),
            "out of memory: CUDA out of memory",
        ),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried. Error code 12"
            ),
            "out of memory: DefaultCPUAllocator: can't allocate memory: you tried",
        ),
    ],
)
def test_a_stage_that_fails_is_said_and_tried_again(
    tmp_path: Path, error: Exception, said: str
) -> None:
    def full(*_: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "regularise", full)
        records = run("regularise", tmp_path)
    assert {record["error"] for record in records.values()} == {said}
    assert (
        "- regularise, adapters: out of memory" in (tmp_path / "summary.md").read_text()
    )
    assert "error" not in run("regularise", tmp_path)["regularise, adapters"]


def test_less_time_measures_fewer_blocks_and_says_so(tmp_path: Path) -> None:
    record = run("select", tmp_path, "--seconds", "0")["select, sleb"]
    # a batch is 2 of the 8 blocks: all would take 4 times as long
    assert (record["blocks"], record["blocks_in_all"]) == (2, 8)
    assert record["seconds_for_all_blocks"] == 4 * record["seconds"]
    assert "(extrapolated)" in (tmp_path / "summary.md").read_text()


def test_results_of_another_shape_are_left_alone(out: Path) -> None:
    about = json.loads((out / "results.json").read_text()) | {"shape": "7b"}
    with pytest.raises(
        UserError, match="holds results of shape 'tiny', these would be of '7b'"
    ):
        Results(out, about)


# --- arithmetic ---


def test_flops_by_hand() -> None:
    config = shape_of("tiny").config
    # a layer: q, k, v, o of 16 x 16 and three matrices of 16 x 24, 4 x 256 + 3 x 384 = 2176 weights; head 16 x 64
    # linear: 2 x (2176 + 1024) = 6400; attention: 2 x 32 tokens x 16 = 1024
    assert flops_per_token(config, 32, 1) == 6400 + 1024
    assert flops_per_token(config, 32, 1, times=FROZEN) == 2 * 6400 + 3 * 1024
    assert flops_per_token(config, 32, 1, times=TRAINED) == 3 * 7424
    # LLaMA2-7B: 32 layers of 4096 x (4 x 4096 + 3 x 11008) = 202,375,168 weights, and a head of 131,072,000
    big = shape_of("7b").config
    assert (
        flops_per_token(big, 2048, 32)
        == 2 * (32 * 202_375_168 + 131_072_000) + 2 * 32 * 2048 * 4096
    )


def test_flops_are_what_torch_counts() -> None:
    # torch counts the products of attention that the mask throws away, too: twice what the formula says
    config, tokens = shape_of("7b").config, 256
    with torch.device("meta"):  # no weights, no work: all 32 layers pass in a second
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    linear = flops_per_token(config, 0, 32)
    attention = flops_per_token(config, tokens, 32) - linear
    assert counter.get_total_flops() == tokens * (linear + 2 * attention)


def test_passes_of_sleb_by_hand() -> None:
    # round 1: all 4 layers; without 1: 2 and 3; without 2: 3. Round 2, 1 gone: 0, 2, 3; without 2: 3
    assert sleb_passes(4, [1, 2]) == (4 + 2 + 1 + 3 + 1, 3 + 2)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("cpu", None),
    ],
)
def test_peaks(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


# --- the script ---


def blocking(folder: Path, names: list[str]) -> dict[str, str]:
    """Return an environment in which Python finds none of these packages."""
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"
    )
    return os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_the_script_runs_where_little_more_than_torch_is_installed(
    tmp_path: Path,
) -> None:
    absent = [
        "prefect",
        "mlflow",
        "dvc",
        "boto3",
        "lm_eval",
        "datasets",
        "matplotlib",
        "typer",
        "jinja2",
        "tasks",
    ]
    command = [SCRIPT, "regularise", "--shape", "tiny"]
    env = blocking(tmp_path, absent) | {"OUT": str(tmp_path / "out")}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "out" / "summary.md").read_text() + "\n"
    assert "`benchmarks/gpu.sh regularise --shape tiny`" in done.stdout


def test_a_missing_package_is_said_at_once(tmp_path: Path) -> None:
    env = blocking(tmp_path, ["pydantic", "rich"])
    done = subprocess.run([SCRIPT, "select"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "lacks pydantic, rich; install them" in done.stderr
    assert done.stderr.count("\n") == 1


def test_all_is_one_process_a_part(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = - ] || echo "$(basename "$1") $2 $3"\n')
    python.chmod(0o755)
    env = os.environ | {"PYTHON": str(python)}
    done = subprocess.run(
        [SCRIPT, "all", "--x"], env=env, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f"gpu.py {part} --x" for part in STAGES]
    done = subprocess.run([SCRIPT, "rest"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: there is no part 'rest'; valid: select regularise recover speed default train all\n"
    )


def test_the_real_shape_needs_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu.py", "select", "--device", "cpu", "--out", str(tmp_path / "out")],
    )
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 2
    assert not (tmp_path / "out").exists()


def test_kernels_are_timed_beside_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_kernels

    out = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["gpu_kernels.py", "--tiny", "--out", str(out)])
    gpu_kernels.main()
    rows = json.loads(out.read_text())["rows"]
    heads = [(row["loss"], row["learns"]) for row in rows if "head" in row]
    assert heads[:3] == [("kl", False), ("kl", True), ("ce", True)]
    assert rows[-1]["step"]
    assert all(row["ms"] > 0 for row in rows)
