"""What may import what: flows -> tasks -> elder and never back, storey by storey and in no circle."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("elder", "tasks", "flows")
OTHERS = [
    "prefect",
    "mlflow",
    "dvc",
    "boto3",
    "lm_eval",
    "datasets",
    "peft",
    "accelerate",
    "matplotlib",
]
BLOCK = (
    f"import sys; sys.modules.update(dict.fromkeys({OTHERS + ['tasks', 'flows']!r}))\n"
)
STOREYS = [  # of elder, from the ground up; a room may import those below it and its neighbours
    {
        "",
        "errors",
        "secrecy",
        "params",
        "settings",
        "record",
        "files",
        "device",
        "process",
        "data",
        "environment",
        "progress",
    }
    | {"fingerprint", "locks", "names", "parallel"},
    {"model"},
    {
        "selection",
        "compensation",
        "recovery",
        "training",
        "evaluation",
        "engines",
        "report",
    },
    {"compression"},
    {"plan"},
    {"compare"},
    {"cli", "__main__"},
]


def modules(package: str) -> dict[str, Path]:
    """Return {dotted name: file} of a package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path] | None = None) -> Iterator[str]:
    """Yield what a file imports, inside functions too; a name of a known module is that module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative imports hide where they lead"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if known and inner in known else node.module


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("elder", {"tasks", "flows", "prefect", "mlflow", "dvc", "boto3"}),
        ("tasks", {"flows"}),
    ],
)
def test_imports_never_go_back(package: str, forbidden: set[str]) -> None:
    found = [
        (name, one.partition(".")[0])
        for name, path in modules(package).items()
        for one in imports(path)
    ]
    assert (
        ("elder.compression.stages", "elder")
        if package == "elder"
        else ("tasks.stage", "elder")
    ) in found
    assert [(file, name) for file, name in found if name in forbidden] == []


def storey(name: str) -> int:
    room = (name.split(".") + [""])[1]
    return next(number for number, rooms in enumerate(STOREYS) if room in rooms)


def test_elder_imports_from_its_own_storey_or_below() -> None:
    known = modules("elder")
    upwards = [
        (name, other)
        for name, path in known.items()
        for other in imports(path, known)
        if other in known and storey(other) > storey(name)
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {
        name: path for package in PACKAGES for name, path in modules(package).items()
    }
    graph = {
        name: {other for other in imports(path, known) if other in known}
        for name, path in known.items()
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_folder_holds_more_than_fourteen_modules() -> None:
    folders = [
        path.parent for package in PACKAGES for path in modules(package).values()
    ]
    assert {
        folder.relative_to(ROOT).as_posix()
        for folder in folders
        if folders.count(folder) > 14
    } == set()


def run(
    code: str, *arguments: str, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
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
    assert int(done.stdout) >= 50


def test_elder_compresses_without_the_pipeline(
    model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    arguments = [
        "compress",
        str(model_folder),
        "--layers",
        "2",
        "--calibration",
        str(text_file),
        "--samples",
        "8",
    ]
    arguments += [
        "--seq-len",
        "32",
        "--set",
        "recover.epochs=1",
        "--output",
        "out",
        "--json",
    ]
    done = run(BLOCK + "from elder.cli import main; main()", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["removed"]) == 2


def test_help_does_not_pay_for_torch() -> None:
    heavy = ["torch", "transformers", "matplotlib"]
    done = run(
        f"import sys, elder.cli.app; print([name for name in {heavy} if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr
