"""docs/architecture.md has a line for every module, and it is the first of that module's own docstring."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TREE = PAGE.partition("## Every file")[2]


def modules() -> list[Path]:
    found = [
        path
        for name in ("elder", "tasks", "flows", "infra")
        for path in (ROOT / name).rglob("*.py")
    ]
    return [
        path
        for path in sorted(found)
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


def test_every_module_has_its_line() -> None:
    lines = [" ".join(line.split()) for line in TREE.splitlines()]
    missing = []
    for path in modules():
        said = (
            ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        ).partition("\n")[0]
        name = (
            f"{path.parent.relative_to(ROOT)}/"
            if path.name == "__init__.py"
            else path.name
        )
        if " ".join(f"{name} {said}".split()) not in lines:
            missing.append(f"{path.relative_to(ROOT)}: {said}")
    assert missing == []


def test_every_line_has_its_module() -> None:
    names = [path.name for path in modules()]
    told = [line.split()[0] for line in TREE.splitlines() if line.startswith("    ")]
    assert len(told) > 100
    assert [name for name in told if name not in names] == []


@pytest.mark.parametrize(
    "word",
    sorted(
        {word.strip("`:,;.") for word in PAGE.split() if word.startswith("`elder/")}
    ),
)
def test_every_place_that_is_named_is_there(word: str) -> None:
    assert (ROOT / word.partition(":")[0]).exists()
