"""The ``gpu`` concurrency limit, and what a killed run leaves behind in Prefect.

A Prefect server takes slots back by itself when their lease runs out. The one that a run starts for itself, where there
is no server, does not: the slot of a run that was killed would be held for ever. Here the runs do it for each other.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, FlowRun, StateType
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Crashed, State
from prefect.utilities.asyncutils import run_coro_as_sync

from elder.progress import say
from tasks.run.exclusive import on_ray

GPU = "gpu"
LOGGER = "prefect._internal.concurrency"  # of the service that asks for slots
# Seconds after which a killed run's slot is free again; the least that Prefect allows.
LEASE = 60
PATIENCE = (
    10  # seconds of waiting for a slot, after which those of killed runs are looked for
)
UNFINISHED = (StateType.RUNNING, StateType.PENDING)
MANY = 100  # names in one question


def ensure_gpu_limit(slots: int = 1) -> None:
    """Create the ``gpu`` concurrency limit where the server has none; one that is there keeps its size."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=GPU, limit=slots)
                )
            except ObjectAlreadyExists:  # another run was faster
                return


def crash_abandoned(run_ids: list[str]) -> None:
    """Mark as crashed what Prefect still takes for running of earlier attempts, and what they were part of.

    Their slots are free then, and automations learn of it.

    Args:
        run_ids: runs whose process is known to be gone, since this one is alone at work in their project.
    """
    with get_client(sync_client=True) as client:
        own = {flow_run.id}
        if flow_run.id:
            own |= {str(one.id) for one in _ancestors(client, UUID(flow_run.id))}
        for abandoned in _unfinished(client, run_ids):
            for dead in [abandoned, *_ancestors(client, abandoned.id)]:
                if str(dead.id) not in own and dead.state_type in UNFINISHED:
                    state: State[None] = Crashed(message="its process was killed")
                    client.set_flow_run_state(dead.id, state, force=True)


def _unfinished(client: SyncPrefectClient, names: list[str]) -> list[FlowRun]:
    """Return the flow runs of these names that Prefect takes for running."""
    states = FlowRunFilterStateType(any_=list(UNFINISHED))
    runs: list[FlowRun] = []
    for start in range(0, len(names), MANY):
        named = FlowRunFilterName(any_=names[start : start + MANY])
        wanted = FlowRunFilter(name=named, state=FlowRunFilterState(type=states))
        runs += client.read_flow_runs(flow_run_filter=wanted)
    return runs


def _ancestors(client: SyncPrefectClient, run: UUID) -> list[FlowRun]:
    """Return the flow runs that a flow run is part of, the nearest first."""
    ancestors: list[FlowRun] = []
    present = client.read_flow_run(run)
    while present.parent_task_run_id:
        task_run = client.read_task_run(present.parent_task_run_id)
        if task_run.flow_run_id is None:
            break
        present = client.read_flow_run(task_run.flow_run_id)
        ancestors.append(present)
    return ancestors


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold a slot of the ``gpu`` limit, waiting for one as long as it takes; Ray keeps GPUs for what it placed."""
    if on_ray():
        yield
        return
    holder = (
        ConcurrencyLeaseHolder(type="flow_run", id=flow_run.id) if flow_run.id else None
    )
    # for good: another thread may log it after the wait
    logging.getLogger(LOGGER).addFilter(_is_news)
    with ExitStack() as held:
        waits = False
        while True:
            free_dead_slots()
            slot = concurrency(
                GPU,
                occupy=1,
                strict=True,
                timeout_seconds=PATIENCE,
                lease_duration=LEASE,
                holder=holder,
                raise_on_lease_renewal_failure=False,  # a busy server that answers late should not end hours of work
            )
            try:
                held.enter_context(slot)
                break
            except TimeoutError:
                if not waits:
                    say(
                        f"waiting: other runs hold all slots of Prefect's limit {GPU!r}"
                    )
                waits = True
        yield


def _is_news(record: logging.LogRecord) -> bool:
    """Say whether Prefect logs something else than that no slot was free, or that a server which is gone hears nothing.

    It calls the former an error each time; the latter ends the command, which says so.
    """
    said = record.getMessage()
    no_slot = "SlotAcquisition" in said and "TimeoutError" in said
    return not no_slot and "EventsWorker" not in said


def free_dead_slots() -> None:
    """Take back slots whose lease ran out or whose flow run has ended, where no Prefect server does it."""
    from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage

    if get_current_settings().api.url:
        return
    storage = get_concurrency_lease_storage()
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(GPU)
        dead = set(run_coro_as_sync(storage.read_expired_lease_ids()))
        holders: list[tuple[UUID, ConcurrencyLeaseHolder]] = run_coro_as_sync(
            storage.list_holders_for_limit(limit.id)
        )
        for lease, holder in holders:
            if holder.type == "flow_run" and _has_ended(client, holder):
                dead.add(lease)
        for lease in dead:
            client.release_concurrency_slots_with_lease(lease)


def _has_ended(client: SyncPrefectClient, holder: ConcurrencyLeaseHolder) -> bool:
    try:
        state = client.read_flow_run(holder.id).state
    except ObjectNotFound:
        return True
    return state is not None and state.is_final()
