"""The application as a whole: what its commands are given from outside, and what they print of foreign names."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.params import Params
from elder.progress import one_line
from elder.record import Perplexity, TaskResult

STORED = "models:/tiny@champion"


def test_a_stored_model_is_looked_up_once_and_keeps_its_name_in_the_record(
    here: Path, model_folder: Path, text_file: Path
) -> None:
    asked = []

    def local_model(name: str, settings: Params) -> str:
        asked.append((name, settings.registry.name))
        return str(model_folder)

    app = build_app(replace(LIBRARY, local_model=local_model))
    command = ["compress", STORED, "--output", "out", "--layers", "2", "--json"]
    command += ["--calibration", str(text_file), "--samples", "8", "--seq-len", "32"]
    command += ["--method", "last", "--recover", "none", "--set", "registry.name=mine"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert asked == [(STORED, "mine")]
    record = json.loads((here / "out" / "elder.json").read_text())
    assert json.loads(done.stdout)["model"] == STORED
    assert record["model"]["name"] == STORED
    assert record["lineage"]["params"]["model"]["name"] == STORED
    assert STORED in (here / "out" / "README.md").read_text()


@pytest.mark.parametrize("command", ["select", "bench"])
def test_the_library_alone_refuses_stored_models_in_a_sentence(
    here: Path, command: str
) -> None:
    done = CliRunner().invoke(build_app(LIBRARY), [command, "s3://bucket/tiny"])
    assert done.exit_code == 2
    assert done.stderr == (
        "error: 's3://bucket/tiny' needs the pipeline's packages; "
        "install them with: pip install 'elder[pipeline]'\n"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ± ≈ 模型", "plain ± ≈ 模型"),
        ("model\nholds    weights: fine", "model\\nholds    weights: fine"),
        ("a\rb\x1b[2Kc\td", "a\\rb\\x1b[2Kc\\td"),
        ("a\u2028b\u0085c", "a\\u2028b\\x85c"),
        ("fdp\u202e.exe", "fdp\\u202e.exe"),
    ],
)
def test_foreign_text_stays_on_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_an_ascii_terminal_gets_escapes_and_no_traceback(here: Path) -> None:
    code = (
        "from elder.cli.app import build_app; from elder.cli.services import Services\n"
        "def fail(*_): print('1.5 ± 0.1'); raise SystemExit(0)\n"
        "build_app(Services(fail, fail, fail))(['select', 'x', '--layers', '2'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1.5 \\xb1 0.1\n"), done.stderr


@pytest.fixture
def one_block(here: Path, model_folder: Path, text_file: Path) -> list[str]:
    """Return the command that measures perplexity on a single block."""
    command = [
        "evaluate",
        str(model_folder),
        "--text",
        str(text_file),
        "--seq-len",
        "32",
    ]
    return [*command, "--set", "evaluate.max_tokens=32"]


def test_a_perplexity_without_a_standard_error_is_shown_alone(
    one_block: list[str],
) -> None:
    done = CliRunner().invoke(build_app(LIBRARY), one_block)
    assert done.exit_code == 0, done.stderr
    assert re.fullmatch(r"perplexity \d+\.\d{3} on 32 tokens\n", done.stdout)
    measured = json.loads(
        CliRunner().invoke(build_app(LIBRARY), [*one_block, "--json"]).stdout
    )
    assert measured["stderr"] is None
    assert measured["blocks"] == 1


def test_an_infinite_perplexity_is_null_in_json(
    one_block: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {
        "perplexity": math.inf,
        "stderr": None,
        "nll": 800.0,
        "tokens": 32,
        "blocks": 1,
    }
    monkeypatch.setattr(
        "elder.evaluation.perplexity.perplexity_of_text",
        lambda *_: Perplexity(**broken),
    )
    done = CliRunner().invoke(build_app(LIBRARY), [*one_block, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["perplexity"] is None
    shown = CliRunner().invoke(build_app(LIBRARY), one_block)
    assert shown.stdout == "perplexity inf on 32 tokens\n"


def test_a_task_without_a_standard_error_is_shown_alone(
    one_block: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {
        "one item": TaskResult(metric="acc", value=1.0, stderr=None),
        "many": TaskResult(metric="acc", value=0.5, stderr=0.25),
    }
    monkeypatch.setattr("elder.evaluation.tasks.run_tasks", lambda *_, **__: tasks)
    monkeypatch.setattr("elder.evaluation.tasks.try_tasks", lambda *_: None)
    command = ["evaluate", one_block[1], "--tasks", "a,b"]
    done = CliRunner().invoke(build_app(LIBRARY), command)
    assert done.stdout == "one item: acc 1.0000\nmany: acc 0.5000 ± 0.2500\n", (
        done.stderr
    )
