"""What every command pays before it does anything: no library is imported that `elder --help` does not need."""

import subprocess
import sys

HEAVY = {
    "asyncio",
    "boto3",
    "datasets",
    "dvc",
    "filelock",
    "httpx",
    "huggingface_hub",
    "jinja2",
    "lm_eval",
    "matplotlib",
    "mlflow",
    "numpy",
    "prefect",
    "rich.progress",
    "safetensors",
    "sqlalchemy",
    "torch",
    "transformers",
}
CODE = """
import sys
from typer.testing import CliRunner
from flows.cli.app import build_app

loaded = set(sys.modules)
found = CliRunner().invoke(build_app(), ["--help"])
assert found.exit_code == 0 and "compress" in found.output
print(*(loaded | set(sys.modules)))
"""


def test_help_imports_no_library_that_does_the_work() -> None:
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"flows.cli.app", "elder.cli.app"} <= loaded
    assert HEAVY & loaded == set()
