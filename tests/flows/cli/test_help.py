"""What every command pays before it does anything: help appears without the heavy libraries."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from elder import params
from tasks.registry.client import Registry

ROOT = Path(__file__).parents[3]
HEAVY = [
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pandas",
    "matplotlib",
    "datasets",
    "lm_eval",
    "mlflow",
    "prefect",
    "dvc",
    "boto3",
    "botocore",
    "codecarbon",
    "cryptography",
    "fastapi",
    "httpx",
    "jinja2",
    "requests",
    "sqlalchemy",
]
COMMANDS = [
    "select",
    "compress",
    "evaluate",
    "bench",
    "compare",
    "audit",
    "reproduce",
    "promote",
    "rollback",
    "history",
    "run",
    "doctor",
    "serve",
    "sweep",
]


def loaded_for(*arguments: str, folder: Path = ROOT) -> tuple[list[str], str]:
    """Run the command line in a folder; returns which heavy modules it loaded, and what it printed."""
    code = (
        "import sys\n"
        "from flows.cli import main\n"
        f"sys.argv = ['elder', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return eval(done.stderr.splitlines()[-1]), done.stdout


def test_help_loads_no_heavy_library() -> None:
    heavy, said = loaded_for("--help")
    assert heavy == []
    assert [name for name in COMMANDS if name not in said] == []


@pytest.mark.parametrize("command", ["compress", "run", "promote"])
def test_a_commands_help_loads_no_heavy_library(command: str) -> None:
    heavy, said = loaded_for(command, "--help")
    assert heavy == []
    assert "--set" in said


def test_a_decision_pays_for_no_method_and_no_flow(tmp_path: Path) -> None:
    Registry(params.Registry(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    # settings of methods stand in the file, and are not needed
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    heavy, said = loaded_for("history", "a-model", "--json", folder=tmp_path)
    assert set(heavy) & {"torch", "transformers", "prefect", "datasets"} == set()
    assert json.loads(said)["entries"] == []
