"""A few of the faults of ``make chaos``: nothing is lost, doubled or half-visible, and every failure says why."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import table
from tests.chaos.forks import Ending
from tests.chaos.looking import State
from tests.chaos.services.postgres import installed
from tests.chaos.trials import Outcome, Trial, judge

ROOT = Path(__file__).parents[2]
PATIENCE = 1500  # seconds, on a machine with much else to do
FEWEST = 20 if installed() else 12  # trials
KILLED, DONE = Ending(-9, "", 1.0), Ending(0, "done", 1.0)
REFUSED = Ending(2, "error: the disk is full\n", 1.0)
CRASHED = Ending(3, "Traceback (most recent call last):\nerror: x\n", 1.0)


def seen(*names: str, faults: tuple[str, ...] = (), exact: str = "a") -> State:
    return State(
        things=dict.fromkeys(names, "what it is"),
        exact=dict.fromkeys(names, exact),
        faults=list(faults),
    )


@pytest.mark.parametrize(
    ("states", "endings", "outcome"),
    [
        ([seen(), seen("v 1")], [KILLED, DONE], Outcome.RECOVERED),
        ([seen("v 1")], [DONE], Outcome.RECOVERED),
        ([seen(), seen("v 1")], [REFUSED, DONE], Outcome.REPORTED),
        ([seen(), seen("v 1")], [CRASHED, DONE], Outcome.UNCLEAR),
        ([seen(), seen("v 1")], [DONE, DONE], Outcome.LOST),
        ([seen(), seen()], [KILLED, REFUSED], Outcome.LOST),
        ([seen("v 1"), seen("v 1", exact="b")], [KILLED, DONE], Outcome.LOST),
        ([seen(), seen("v 1", "v 2")], [KILLED, DONE], Outcome.DOUBLED),
        ([seen(faults=("v 1 is torn",)), seen("v 1")], [KILLED, DONE], "half-visible"),
    ],
)
def test_what_is_there_in_the_end_is_judged(
    states: list[State], endings: list[Ending], outcome: Outcome
) -> None:
    assert judge(seen("v 1"), states, endings)[0] == outcome


def test_the_table_counts_every_trial() -> None:
    def trial(kind: str, outcome: Outcome) -> Trial:
        return Trial("elder run", kind, "", outcome, "", 0, "")

    trials = [
        trial("kill", Outcome.RECOVERED),
        trial("kill", Outcome.LOST),
        trial("disk", Outcome.REPORTED),
    ]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.table(trials).splitlines()
    ]
    assert rows[0][:6] == [
        "command, services",
        "fault",
        "trials",
        "recovered",
        "reported",
        "unclear",
    ]
    assert rows[2] == ["elder run", "kill", "2", "1", "0", "0", "1", "0", "0"]
    assert rows[-1] == ["all", "", "3", "1", "1", "0", "1", "0", "0"]
    assert [one.kind for one in table.bad(trials)] == ["kill"]


@pytest.mark.timeout(PATIENCE)
def test_nothing_is_lost_doubled_or_half_visible(tmp_path: Path) -> None:
    found = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "tests.chaos", "--short", "--json", str(found)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    outcomes = [one["outcome"] for one in json.loads(found.read_text())["trials"]]
    assert len(outcomes) >= FEWEST
    assert set(outcomes) <= {"recovered", "reported"}
