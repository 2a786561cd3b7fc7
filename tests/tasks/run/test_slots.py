"""What Prefect still takes for running after a power cut is marked as crashed, parents included."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import State

from tasks.run import slots
from tasks.run.slots import crash_abandoned


class Server:
    """Stands for Prefect's client: flow runs by id, and which of them are part of which."""

    def __init__(self) -> None:
        self.runs: dict[UUID, FlowRun] = {}
        self.task_runs: dict[UUID, UUID] = {}
        self.crashed: list[str] = []

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(
        self, name: str, state: StateType, parent: FlowRun | None = None
    ) -> FlowRun:
        task_run = uuid4() if parent else None
        run = FlowRun(
            flow_id=uuid4(), name=name, state_type=state, parent_task_run_id=task_run
        )
        self.runs[run.id] = run
        if parent and task_run:
            self.task_runs[task_run] = parent.id
        return run

    def read_flow_runs(self, flow_run_filter: Any) -> list[FlowRun]:
        names, states = flow_run_filter.name.any_, flow_run_filter.state.type.any_
        return [
            run
            for run in self.runs.values()
            if run.name in names and run.state_type in states
        ]

    def read_flow_run(self, run: UUID) -> FlowRun:
        return self.runs[run]

    def read_task_run(self, task_run: UUID) -> SimpleNamespace:
        return SimpleNamespace(flow_run_id=self.task_runs[task_run])

    def set_flow_run_state(self, run: UUID, state: State[None], force: bool) -> None:
        assert force  # whatever the server's rules say of such a transition
        assert state.type is StateType.CRASHED
        self.crashed.append(self.runs[run].name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(slots, "get_client", lambda **_: made)
    monkeypatch.setattr(slots, "flow_run", SimpleNamespace(id=None))
    return made


def test_the_parent_of_an_abandoned_run_is_crashed_too(server: Server) -> None:
    nightly = server.add("brave-fox", StateType.RUNNING)
    server.add("r1", StateType.RUNNING, nightly)
    server.add("r2", StateType.PENDING)
    server.add("elsewhere", StateType.RUNNING)  # a run of another project
    crash_abandoned(["r1", "r2"])
    assert server.crashed == ["r1", "brave-fox", "r2"]


def test_what_has_ended_or_goes_on_is_left_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = server.add("sweep", StateType.RUNNING)
    server.add("r1", StateType.FAILED, sweep)  # an earlier cell, which told its end
    server.add("r2", StateType.RUNNING, sweep)  # an earlier attempt of the same cell
    own = server.add("r2", StateType.RUNNING, sweep)
    monkeypatch.setattr(slots, "flow_run", SimpleNamespace(id=str(own.id)))
    crash_abandoned(["r1", "r2"])
    assert server.crashed == ["r2"]  # neither this run nor the sweep that it is part of


def test_many_runs_are_asked_for_in_portions(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "MANY", 2)
    for number in range(5):
        server.add(f"r{number}", StateType.RUNNING)
    crash_abandoned([f"r{number}" for number in range(5)])
    assert server.crashed == [f"r{number}" for number in range(5)]


def test_a_run_that_waits_for_a_slot_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture,
) -> None:
    logger = logging.getLogger(slots.LOGGER)
    asked: list[float] = []

    @contextmanager
    def taken(*_: Any, timeout_seconds: float, **__: Any) -> Iterator[None]:
        asked.append(timeout_seconds)
        if len(asked) < 4:
            item = "<Future state=finished raised TimeoutError>"
            logger.error(
                "Service %r failed to process item %s",
                "ConcurrencySlotAcquisitionWithLeaseService",
                item,
            )
            raise TimeoutError
        logger.error("something else")
        yield

    monkeypatch.setattr(slots, "concurrency", taken)
    monkeypatch.setattr(slots, "free_dead_slots", lambda: None)
    with slots.gpu_slot():
        pass
    assert len(asked) == 4
    said = capsys.readouterr().err
    assert said.count("waiting: other runs hold all slots") == 1
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    logger.error("SlotAcquisition failed: TimeoutError")  # late, from another thread
    assert len(caplog.records) == 1
    logger.error("SlotAcquisition failed: out of luck")
    assert len(caplog.records) == 2
