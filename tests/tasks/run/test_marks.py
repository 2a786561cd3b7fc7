"""A mark counts only while it is whole, and an object: whatever else is there stands for nothing that was done."""

from pathlib import Path

import pytest

from tasks.run.marks import read_mark


@pytest.mark.parametrize(
    "content", ["", "\0\0\0\0", '{"since"', "[1, 2]", "null", "7", '"done"', "[" * 5000]
)
def test_what_is_no_whole_object_is_no_mark(tmp_path: Path, content: str) -> None:
    mark = tmp_path / "mark.json"
    assert read_mark(mark) is None
    mark.write_text(content)
    assert read_mark(mark) is None


def test_a_whole_object_is_one(tmp_path: Path) -> None:
    mark = tmp_path / "mark.json"
    mark.write_text('{"since": "2026-11-24"}')
    assert read_mark(mark) == {"since": "2026-11-24"}
