"""The ``gpu`` concurrency limit, and what a killed run leaves behind in Prefect.

A Prefect server takes slots back by itself when their lease runs out. The one that a run starts for itself, where there
is no server, does not: the slot of a run that was killed would be held for ever. Here the runs do it for each other.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, StateType
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Crashed
from prefect.utilities.asyncutils import run_coro_as_sync

GPU = "gpu"
LEASE = (
    60  # seconds after which a killed run's slot is free again; the least that Prefect allows
)
PATIENCE = 10  # seconds of waiting for a slot, after which those of killed runs are looked for


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


def bury(run_id: str) -> None:
    """Mark earlier flow runs of this run as crashed: it goes on here, so the process that they belonged to is gone."""
    states = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    named = FlowRunFilter(
        name=FlowRunFilterName(any_=[run_id]), state=FlowRunFilterState(type=states)
    )
    with get_client(sync_client=True) as client:
        for dead in client.read_flow_runs(flow_run_filter=named):
            if str(dead.id) != flow_run.id:
                client.set_flow_run_state(
                    dead.id, Crashed(message="its process was killed"), force=True
                )


@contextmanager
def gpu_slot() -> Iterator[None]:
    """Hold a slot of the ``gpu`` limit, waiting for one as long as it takes."""
    holder = ConcurrencyLeaseHolder(type="flow_run", id=flow_run.id) if flow_run.id else None
    with ExitStack() as held:
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
                continue
        yield


def free_dead_slots() -> None:
    """Take back slots whose lease ran out or whose flow run has ended, where no Prefect server does it."""
    from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage

    if get_current_settings().api.url:
        return
    storage = get_concurrency_lease_storage()
    with get_client(sync_client=True) as client:
        limit = client.read_global_concurrency_limit_by_name(GPU)
        dead = set(run_coro_as_sync(storage.read_expired_lease_ids()))
        holders = run_coro_as_sync(storage.list_holders_for_limit(limit.id))
        dead |= {
            lease
            for lease, holder in holders
            if holder.type == "flow_run" and _has_ended(client, holder)
        }
        for lease in dead:
            client.release_concurrency_slots_with_lease(lease)


def _has_ended(client: SyncPrefectClient, holder: ConcurrencyLeaseHolder) -> bool:
    try:
        state = client.read_flow_run(holder.id).state
    except ObjectNotFound:
        return True
    return state is not None and state.is_final()
