"""One trial: a command meets a fault, is given again without any, and what is there in the end is judged."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from tests.chaos.forks import Ending
from tests.chaos.looking import State
from tests.chaos.worlds import Arm, World, nothing

AGAIN = 3  # times that a command is given again at most
SENTENCE = re.compile(r"^(error|refused|interrupted): .+", re.MULTILINE)
LONGEST = 400  # characters of what a command said in a result


class Outcome(StrEnum):
    """How a trial ended."""

    RECOVERED = "recovered"  # the end is that of an undisturbed run
    REPORTED = "reported"  # the same, after a clear sentence that said what was wrong
    UNCLEAR = "unclear"  # the same, after a failure that no sentence explains
    LOST = "lost"
    DOUBLED = "doubled"
    HALF_VISIBLE = "half-visible"


GOOD = (Outcome.RECOVERED, Outcome.REPORTED)


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        kind: a row of the table.
        where: at which place, for people.
        arm: called in the child, before the command.
        begin: called before the child starts.
        lift: called when the child has ended.
        kill_after: seconds until the child is killed; 0: never.
    """

    kind: str
    where: str
    arm: Arm = nothing
    begin: Arm = nothing
    lift: Arm = nothing
    kill_after: float = 0.0


@dataclass
class Scene:
    """A command in a world.

    Attributes:
        name: of the scene.
        world: where it happens.
        template: what the world is at the beginning.
        command: words of the command.
        again: returns the command that goes on after a failure, by what is there; by default the same.
        wanted: what an undisturbed command leaves.
        seconds: that it takes.
        effects: what it does to the world, where that was looked at.
    """

    name: str
    world: World
    template: str
    command: tuple[str, ...]
    again: Callable[[State], tuple[str, ...]] | None = None
    wanted: State = field(default_factory=State)
    seconds: float = 0.0
    effects: list[str] = field(default_factory=list)

    def undisturbed(self) -> None:
        """See what the command does where nothing goes wrong.

        Raises:
            RuntimeError: if something does.
        """
        self.world.reset(self.template)
        ending = self.world.run(*self.command)
        self.wanted, self.seconds = self.world.look(), ending.seconds
        if ending.status != 0 or self.wanted.faults:
            said = f"{self.name} ended with {ending.status}: {self.wanted.faults}"
            raise RuntimeError(f"{said}\n{ending.said}")


@dataclass(frozen=True)
class Trial:
    """What came of a fault."""

    scene: str
    kind: str
    where: str
    outcome: Outcome
    why: str
    status: int | None
    said: str


def try_fault(scene: Scene, fault: Fault) -> Trial:
    """Make a trial."""
    scene.world.reset(scene.template)
    fault.begin()
    try:
        ending = scene.world.run(
            *scene.command, arm=fault.arm, kill_after=fault.kill_after
        )
    finally:
        fault.lift()
    states, endings = [scene.world.look()], [ending]
    while states[-1].things != scene.wanted.things and len(endings) <= AGAIN:
        command = scene.again(states[-1]) if scene.again else scene.command
        endings.append(scene.world.run(*command))
        states.append(scene.world.look())
    outcome, why = judge(scene.wanted, states, endings)
    return Trial(
        scene=f"{scene.name}, {scene.world.name}",
        kind=fault.kind,
        where=fault.where,
        outcome=outcome,
        why=why,
        status=ending.status,
        said=ending.said[-LONGEST:] if outcome not in GOOD else last_line(ending.said),
    )


def judge(
    wanted: State, states: list[State], endings: list[Ending]
) -> tuple[Outcome, str]:
    """Return the outcome, and a sentence for what is not good.

    Args:
        wanted: what an undisturbed command leaves.
        states: what readers saw after each attempt.
        endings: how each attempt ended, the disturbed one first.
    """
    for state in states:
        if state.faults:
            return Outcome.HALF_VISIBLE, "; ".join(state.faults)
    things = states[-1].things
    more = [f"{name}: {things[name]}" for name in things if name not in wanted.things]
    if more:
        return Outcome.DOUBLED, "; ".join(more)
    if things != wanted.things:
        return Outcome.LOST, _difference(wanted.things, things, endings[-1])
    for earlier in states:
        for name, exact in earlier.exact.items():
            if states[-1].exact.get(name) != exact:
                return Outcome.LOST, f"{name} was seen, and is another now"
    return _judge_words(endings)


def _judge_words(endings: list[Ending]) -> tuple[Outcome, str]:
    """Judge what was said of a fault whose end is as it should be."""
    first = endings[0]
    if first.status is None:
        return Outcome.LOST, "it never ended"
    if first.status == 0 and len(endings) > 1:
        return Outcome.LOST, f"it said that all was done: {last_line(first.said)}"
    if first.status <= 0:
        return Outcome.RECOVERED, ""
    if "Traceback" in first.said or not SENTENCE.search(first.said):
        return Outcome.UNCLEAR, "no clear sentence"
    return Outcome.REPORTED, ""


def last_line(text: str) -> str:
    """Return the last line that says anything."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:LONGEST] if lines else ""


def _difference(wanted: dict[str, str], there: dict[str, str], last: Ending) -> str:
    said = [
        f"{name} is {there.get(name, 'not there')!r} and not {what!r}"
        for name, what in wanted.items()
        if there.get(name) != what
    ]
    return f"{'; '.join(said)}; the last attempt said: {last_line(last.said)}"
