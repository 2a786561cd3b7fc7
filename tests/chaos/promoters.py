"""Two who promote at the same moment, one of whom is killed: there is one history, and everybody learns what holds."""

import random
from collections import Counter

from tests.chaos import driver, effects, forks
from tests.chaos.building import NAME
from tests.chaos.forks import Ending
from tests.chaos.looking import State
from tests.chaos.trials import SENTENCE, Outcome, Trial, last_line
from tests.chaos.worlds import World

BEFORE = 2  # decisions in the history already
KIND = "two promoters, one killed"
# version 1 was champion before, version 3 never was
FIRST = ("promote", NAME, "3", "--yes", "--reason", "first", "--force")
SECOND = ("promote", NAME, "1", "--yes", "--reason", "second", "--force")


def try_pair(world: World, seed: int) -> Trial:
    """Start two promotions at once, the first of which dies at some effect of its own; then it is given again."""
    world.reset("versions")
    number = random.Random(seed).randrange(12)

    def arm() -> None:
        effects.killed_at(world.disk.folder, number)

    start = forks.now()
    outputs = [world.place / "output", world.place / "output2"]
    work = [
        world.prepared(lambda: driver.elder(*FIRST), arm),
        world.prepared(lambda: driver.elder(*SECOND)),
    ]
    children = [
        forks.begin(one, output) for one, output in zip(work, outputs, strict=True)
    ]
    endings = [
        forks.end(child, output, start)
        for child, output in zip(children, outputs, strict=True)
    ]
    states = [world.look()]
    if not _decisions(states[0], "3"):
        endings.append(world.run(*FIRST))
        states.append(world.look())
    world.run("history", NAME)
    states.append(world.look())
    outcome, why = _judge(states, endings)
    return Trial(
        scene=f"elder promote twice, {world.name}",
        kind=KIND,
        where=f"seed {seed}, before effect {number}",
        outcome=outcome,
        why=why,
        status=endings[0].status,
        said=" | ".join(last_line(one.said) for one in endings),
    )


def _decisions(state: State, version: str) -> list[str]:
    """Return the new decisions for a version."""
    return [
        name
        for name, what in state.things.items()
        if name.startswith("decision ")
        and int(name.split()[1]) > BEFORE
        and what.endswith(f"to {version}")
    ]


def _judge(states: list[State], endings: list[Ending]) -> tuple[Outcome, str]:
    for state in states:
        if state.faults:
            return Outcome.HALF_VISIBLE, "; ".join(state.faults)
    last = states[-1]
    decisions = [name for name in last.things if name.startswith("decision ")]
    newest = last.things[f"decision {len(decisions)}"].split()[-1]
    told = Counter({version: len(_decisions(last, version)) for version in "13"})
    if max(told.values()) > 1:
        return Outcome.DOUBLED, f"decisions by version: {dict(told)}"
    if last.things.get("alias champion") != newest:
        return Outcome.LOST, f"champion is {last.things.get('alias champion')}"
    for earlier in states:
        for name, exact in earlier.exact.items():
            if last.exact.get(name) != exact:
                return Outcome.LOST, f"{name} was seen, and is another now"
    done = endings[1].status == 0
    if done and not told["1"]:
        return Outcome.LOST, "the second was told that it was done"
    if endings[-1].status == 0 and not told["3"]:
        return Outcome.LOST, "the first was told that it was done"
    failed = [one for one in endings if one.status is None or one.status > 0]
    for one in failed:
        if "Traceback" in one.said or not SENTENCE.search(one.said):
            return Outcome.UNCLEAR, last_line(one.said)
    return (Outcome.REPORTED if failed else Outcome.RECOVERED), ""
