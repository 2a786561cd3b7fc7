"""The shape of the house: sizes and densities above which a reader gets lost."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("elder", "tasks", "flows", "infra")
LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 50  # lines
MOST_PARAMETERS = 7
MOST_MODULES = 14  # in a folder
UNTYPED = 40  # mentions of dict[str, Any]: foreign JSON alone
DENSEST = 8.0  # syntax nodes in a line of code, the median over files

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> dict[Path, str]:
    """Return {file: text} of what belongs to the project: what services install below hidden folders does not."""
    paths = [
        path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    own = [
        path
        for path in paths
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    return {path: path.read_text(encoding="utf-8") for path in own}


FILES, TESTS = python_files(*PACKAGES), python_files("tests")


def functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield node


def parameters(function: Function) -> int:
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def docstring_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(
            node
        ):
            lines |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def density(text: str) -> float:
    """Return the syntax nodes of a file over its lines of code: blank lines, comments and docstrings left out."""
    tree = ast.parse(text)
    prose = docstring_lines(tree)
    lines = enumerate(text.splitlines(), start=1)
    code = [
        n
        for n, line in lines
        if line.strip() and not line.strip().startswith("#") and n not in prose
    ]
    return sum(1 for _ in ast.walk(tree)) / len(code) if code else 0.0


def test_the_density_of_a_line_is_counted_rightly() -> None:
    # Module, Assign, Name, Store, BinOp, Name, Load, Add, Constant: nine nodes in one line of code
    assert density("# a comment\n\na = b + 1\n") == 9.0
    assert density('"""Prose."""\n') == 0.0


@pytest.mark.parametrize(("files", "what"), [(FILES, "packages"), (TESTS, "tests")])
def test_no_file_is_too_long(files: dict[Path, str], what: str) -> None:
    assert len(files) > 50, what
    long = {
        str(path.relative_to(ROOT)): len(text.splitlines())
        for path, text in files.items()
    }
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FILE} == {}


def test_no_folder_holds_too_many_modules() -> None:
    folders = [path.parent for path in (*FILES, *TESTS)]
    assert {
        str(one.relative_to(ROOT))
        for one in folders
        if folders.count(one) > MOST_MODULES
    } == set()


def test_no_function_is_too_long_or_takes_too_much() -> None:
    wrong = []
    for path, text in FILES.items():
        for one in functions(text):
            lines = (one.end_lineno or 0) - one.lineno + 1
            if lines > LONGEST_FUNCTION or parameters(one) > MOST_PARAMETERS:
                wrong.append(
                    f"{path.relative_to(ROOT)}: {one.name}, {lines} lines, {parameters(one)} parameters"
                )
    assert wrong == []


def test_what_passes_between_parts_is_typed() -> None:
    assert sum(text.count("dict[str, Any]") for text in FILES.values()) < UNTYPED


def test_a_line_says_one_thing() -> None:
    known = [density(text) for text in FILES.values() if text.strip()]
    assert statistics.median([one for one in known if one]) <= DENSEST


def test_text_is_utf_8_whatever_the_locale() -> None:
    """What is read and written with the locale's letters differs between two machines."""
    without = []
    for path, text in FILES.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or not isinstance(
                node.func, ast.Attribute
            ):
                continue
            of_path = not isinstance(node.func.value, ast.Name) or (
                node.func.value.id != "files"  # elder.files: always UTF-8
            )
            named = any(keyword.arg == "encoding" for keyword in node.keywords)
            if node.func.attr in ("read_text", "write_text") and of_path and not named:
                without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert without == []
