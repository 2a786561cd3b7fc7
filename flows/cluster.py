"""Calls on the machines of a Ray cluster: each is a task of Prefect, which Ray places on the cores and GPUs it needs.

All machines see the project's folder at one path, as on a shared file system: what was under way on a machine that dies
is placed anew, and goes on from what it had finished. They all report to one Prefect server.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from elder.errors import UserError
from elder.params import Launch, Params
from elder.progress import say
from elder.secrecy import hide_given_secrets
from flows.environment import DEFAULTS, prepare_environment

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

ATTEMPTS = 5  # of a call: so many machines may die under it
Needs = dict[str, float]  # {option of Ray: cores or GPUs}
Item = TypeVar("Item")
Result = TypeVar("Result")


def refuse_cluster(settings: Params) -> None:
    """Refuse a cluster that cells could not be sent to.

    Raises:
        UserError: naming what is missing.
    """
    from prefect.settings import get_current_settings

    asked = f"launch.ray is {settings.launch.ray!r}"
    if find_spec("ray") is None or find_spec("prefect_ray") is None:
        raise UserError(
            f"{asked}, which needs the package prefect-ray: pip install 'elder[ray]'"
        )
    if not get_current_settings().api.url:
        raise UserError(
            f"{asked}, and PREFECT_API_URL is not set: all machines report to one Prefect server; start "
            "it with `prefect server start --host 0.0.0.0` and set PREFECT_API_URL=http://THIS-MACHINE:4200/api"
        )


def spread(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    told: Callable[[Item, Result | UserError], object],
    settings: Params,
    root: Path,
) -> None:
    """Call a function for each item, as many at once as the cluster has room for, each in a process of its own.

    Args:
        function: that can be sent to another machine; it runs in ``root``.
        items: what it is called with.
        told: called here with each item and what came of it, a sentence where it died, as soon as that is known.
        settings: that say where the cluster is, and what a call needs of it.
        root: the project's folder, at the same path on all machines.

    Raises:
        UserError: if the cluster cannot be reached, has no machine with room for a call, or one that lacks the folder.
    """
    from prefect import flow, task
    from prefect.futures import as_completed
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    where = settings.launch
    with redirect_stdout(sys.stderr):
        needs = _needs(settings, _connect(where))
        _refuse_too_small(where, needs)
        _refuse_elsewhere(root)
    say(f"on Ray at {where.ray}, {_in_words(needs)} each")

    @flow(name="spread", task_runner=RayTaskRunner(address=where.ray))
    def all_calls() -> None:
        placed = task(name="call", persist_result=False)(_call_there)
        # Ray starts a call anew where its machine died
        with remote_options(**needs, max_retries=ATTEMPTS, max_calls=1):
            sent = {placed.submit(function, root, item): item for item in items}
        for future in as_completed(list(sent)):
            told(sent[future], _result_of(future))

    # what the cluster says is no result of this command
    with redirect_stdout(sys.stderr):
        all_calls()


def _call_there(
    function: Callable[[Item], Result], root: Path, item: Item
) -> Result | UserError:
    """Call the function on the machine where Ray placed this."""
    os.chdir(root)
    prepare_environment()
    try:
        return function(item)
    except UserError as error:
        return error


def _result_of(future: "PrefectFuture[Result | UserError]") -> Result | UserError:
    try:
        return future.result()
    except Exception as error:
        first = hide_given_secrets(f"{type(error).__name__}: {error}").splitlines()[0]
        return UserError(first)


def _connect(where: Launch) -> dict[str, float]:
    """Join the cluster; returns what it has in all, {resource: amount}."""
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    if ray.is_initialized():
        return dict(ray.cluster_resources())
    try:
        variables = {name: os.environ[name] for name in DEFAULTS}
        ray.init(
            address=where.ray,
            namespace="prefect",
            runtime_env={"env_vars": variables},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster answers at launch.ray {where.ray!r} ({type(error).__name__}): start one with "
            "`ray start --head`, name another, or leave launch.ray out"
        ) from None
    return dict(ray.cluster_resources())


def _needs(settings: Params, room: dict[str, float]) -> Needs:
    """Return the cores and GPUs of a call, as Ray's options."""
    where = settings.launch
    gpus = where.gpus
    if gpus == "auto":
        gpus = 1 if where.processes == "auto" else where.processes
        if not room.get("GPU") or settings.model.device == "cpu":
            gpus = 0
    return {"num_cpus": where.cpus, "num_gpus": gpus}


def _refuse_too_small(where: Launch, needs: Needs) -> None:
    """Refuse calls that no machine could ever hold, for which Ray would wait for ever."""
    import ray

    for node in ray.nodes():
        has = node["Resources"]
        fits = has.get("CPU", 0) >= needs["num_cpus"]
        if node["Alive"] and fits and has.get("GPU", 0) >= needs["num_gpus"]:
            return
    raise UserError(
        f"no machine of the Ray cluster at {where.ray} has {_in_words(needs)}: set launch.cpus or launch.gpus lower"
    )


def _refuse_elsewhere(root: Path) -> None:
    """Refuse a machine that does not see the project's folder."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0)
    def sees(path: str) -> bool:
        return os.path.isfile(path)

    for node in ray.nodes():
        if not node["Alive"]:
            continue
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked = sees.options(scheduling_strategy=there).remote(str(root / "dvc.yaml"))
        if not ray.get(asked):
            raise UserError(
                f"the machine {node['NodeManagerHostname']} of the Ray cluster has no project at {str(root)!r}: share "
                "that folder with all machines, at the same path"
            )


def _in_words(needs: Needs) -> str:
    """Return what a call needs, as people say it."""
    said = f"{needs['num_cpus']:g} cores"
    return f"{said} and {needs['num_gpus']:g} GPUs" if needs["num_gpus"] else said
