"""The picture of a comparison."""

import math
from pathlib import Path

from elder.record import Row
from elder.report.png import comparison_png, in_lines
from tests.elder.records import make_record


def test_comparison_png(tmp_path: Path) -> None:
    rows = make_record()["rows"]
    rows[2]["task_mean"]["stderr"] = None
    rows[3]["perplexity"]["out_of_domain"]["perplexity"] = math.inf
    del rows[4]["perplexity"]["in_domain"]
    path = tmp_path / "new" / "rows.png"
    comparison_png([Row.model_validate(row) for row in rows], path)
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 1920, "12 inches at 160 dots: three panels"


def test_long_names_are_broken_at_their_parameters() -> None:
    assert in_lines("sleb+distil[recover.epochs=6.6]") == (
        "sleb+distil[recover.epochs=6.6]"
    )
    name = "default[select.elder.written=0,select.elder.runners_up=0,compensate.method=none]"
    lines = in_lines(name).split("\n")
    assert lines == [
        "default[select.elder.written=0,",
        "select.elder.runners_up=0,",
        "compensate.method=none]",
    ]
