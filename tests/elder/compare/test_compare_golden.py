"""The stored comparisons: from their rows, table and spreadsheet come out byte for byte as they were written."""

import itertools
import json
from pathlib import Path

import pytest

from elder.compare.table import Section, TableRow
from elder.compare.write import csv_text, flat, markdown
from elder.record import Json

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
NAMES = (
    "ablations",
    "novels-llama",
    "novels-neox",
    "novels-opt",
    "parts-novels-llama",
    "selections",
    "smollm2",
    "texts",
)
SHARED = ("layers", "num_layers", "calibration")


def sections_of(rows: list[dict[str, Json]]) -> list[Section]:
    """Return the sections that flat rows were written from."""

    def section(row: dict[str, Json]) -> tuple[Json, ...]:
        return tuple(row[key] for key in SHARED)

    sections = []
    for shared, members in itertools.groupby(rows, key=section):
        own = [
            TableRow.model_validate({key: row[key] for key in row if key not in SHARED})
            for row in members
        ]
        values = dict(zip(SHARED, shared, strict=True))
        sections.append(Section.model_validate(values | {"rows": own}))
    return sections


@pytest.mark.parametrize("name", NAMES)
def test_stored_tables_are_written_again_byte_for_byte(name: str) -> None:
    stored = (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    table = json.loads(stored)
    sections = sections_of(table["rows"])
    assert len(sections) >= 1
    again = json.dumps(table | {"rows": flat(sections)}, indent=1) + "\n"
    assert again == stored
    markdown_text = markdown(sections, table["budget"], table["seeds"])
    assert markdown_text == (RESULTS / f"{name}.md").read_text(encoding="utf-8")
    assert csv_text(sections) == (RESULTS / f"{name}.csv").read_text(encoding="utf-8")
