"""What came of all trials: a table of fault kinds and outcomes, JSON, and a page."""

import json
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.trials import GOOD, Outcome, Trial

HEADING = """# Faults and what came of them

Made by `{command}` on {date}, seed {seed}: {count} faults in {minutes} minutes.
[docs/chaos.md](../../docs/chaos.md) says what is done and how it is judged.

"""


def table(trials: list[Trial]) -> str:
    """Return a table in Markdown, a row for each kind of fault in each scene."""
    outcomes = list(Outcome)
    rows = dict.fromkeys((one.scene, one.kind) for one in trials)
    counts = Counter((one.scene, one.kind, one.outcome) for one in trials)
    lines = [["command, services", "fault", "trials", *outcomes]]
    for scene, kind in rows:
        numbers = [counts[scene, kind, outcome] for outcome in outcomes]
        lines.append([scene, kind, *map(str, [sum(numbers), *numbers])])
    total = Counter(one.outcome for one in trials)
    numbers = [total[outcome] for outcome in outcomes]
    lines.append(["all", "", *map(str, [sum(numbers), *numbers])])
    return _aligned(lines)


def bad(trials: list[Trial]) -> list[Trial]:
    """Return those that should not be."""
    return [one for one in trials if one.outcome not in GOOD]


def write(path: Path, trials: list[Trial], **run: str | int | float) -> None:
    """Write everything as JSON."""
    tree = run | {"trials": [asdict(one) for one in trials]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def write_page(
    path: Path, trials: list[Trial], command: str, seed: int, minutes: float
) -> None:
    """Write the page of results."""
    date = datetime.now(UTC).date().isoformat()
    heading = HEADING.format(
        command=command,
        date=date,
        seed=seed,
        count=len(trials),
        minutes=round(minutes),
    )
    path.write_text(heading + table(trials) + "\n", encoding="utf-8")


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [_row(line, widths) for line in lines]
    ruler = _row(["-" * width for width in widths], widths)
    return "\n".join([rows[0], ruler, *rows[1:]])


def _row(cells: list[str], widths: list[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return f"| {' | '.join(padded)} |"
