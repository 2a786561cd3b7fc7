"""What may import what: flows -> tasks -> elder and never back; elder runs where only torch and its like are."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OTHERS = ["prefect", "mlflow", "dvc", "boto3", "lm_eval", "datasets", "peft", "accelerate", "matplotlib"]
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({OTHERS + ['tasks', 'flows']!r}))\n"


def imported(package: str) -> Iterator[tuple[str, str]]:
    """Yield (file, top-level name) for each import, those inside functions included."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path.name, node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("elder", {"tasks", "flows", "prefect", "mlflow", "dvc", "boto3"}),
        ("tasks", {"flows"}),
    ],
)
def test_imports_never_go_back(package: str, forbidden: set[str]) -> None:
    found = list(imported(package))
    assert ("stages.py" if package == "elder" else "stage.py", "elder") in found  # the search does find imports
    assert [(file, name) for file, name in found if name in forbidden] == []


def run(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_every_module_of_elder_imports_without_the_pipeline() -> None:
    code = """
import importlib, pkgutil, elder
names = [m.name for m in pkgutil.walk_packages(elder.__path__, "elder.") if m.name != "elder.__main__"]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    done = run(BLOCK + code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 25


def test_elder_compresses_without_the_pipeline(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    arguments = ["compress", str(model_folder), "--layers", "2", "--calibration", str(text_file), "--samples", "8"]
    arguments += ["--seq-len", "32", "--set", "recover.epochs=1", "--output", "out", "--json"]
    done = run(BLOCK + "from elder.cli import main; main()", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["removed"]) == 2


def test_help_does_not_pay_for_torch() -> None:
    heavy = ["torch", "transformers", "matplotlib"]
    done = run(f"import sys, elder.cli; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr
