"""``elder serve``: the deployments of prefect.yaml for those without a worker, in processes of this command."""

import os
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, Field, ValidationError

from elder.errors import UserError
from elder.locks import hold
from elder.progress import say
from elder.record import Json
from elder.secrecy import without_secrets
from elder.settings import read_yaml
from flows.environment import prepare_environment, project_root

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Schedule

LOCK = ".serve"  # below runs/
WHEN = ("cron", "interval", "rrule")  # a schedule says one of them


class ServedDeployment(BaseModel):
    """A deployment of prefect.yaml, as far as it counts without a worker."""

    name: str
    entrypoint: str
    parameters: dict[str, Json] | None = None
    schedules: list[dict[str, Json]] | None = None
    schedule: dict[str, Json] | None = None
    concurrency_limit: int | dict[str, Json] | None = None
    description: str | None = None
    tags: list[str] | None = None

    def all_schedules(self) -> "list[Schedule]":
        """Return its schedules, of whichever of the two keys.

        Raises:
            UserError: both are given, or one of the schedules is not valid.
        """
        if self.schedule is not None and self.schedules:
            raise UserError(
                f"the deployment {self.name!r} has both schedule and schedules; name all under schedules"
            )
        listed = [self.schedule] if self.schedule is not None else self.schedules or []
        return [read_schedule(self.name, values) for values in listed]


class ServedFile(BaseModel):
    """The file prefect.yaml."""

    deployments: list[ServedDeployment] = Field(min_length=1)


def serve() -> None:
    """Keep the schedules of prefect.yaml without a worker, until Ctrl-C; a Prefect server has to be there."""
    root = project_root()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    prepare_environment()
    from prefect import serve as keep_serving

    check_server()
    deployments = read_deployments(root / "prefect.yaml")
    names = [deployment.full_name for deployment in deployments]
    check_names(names)
    # the end of a second one would pause the schedules of the first
    with hold(root / "runs" / LOCK, "another `elder serve` is at work in this project"):
        say(f"serving {', '.join(names)}; Ctrl-C pauses their schedules and ends")
        keep_serving(*deployments, print_starting_message=False)


def check_server() -> None:
    """Refuse to go on where no Prefect server answers: it is what keeps a schedule."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    how = "start one with `prefect server start` and set PREFECT_API_URL=http://127.0.0.1:4200/api"
    if not url:
        raise UserError(f"there is no Prefect server to keep the schedules; {how}")
    with get_client(sync_client=True) as client:
        if client.api_healthcheck() is not None:
            raise UserError(f"no Prefect server answers at {url}; {how}")


def check_names(names: Iterable[str]) -> None:
    """Refuse to take the place of deployments that were made for a worker, here or on whatever server this is.

    Args:
        names: of the deployments that are to be served, as flow/deployment.

    Raises:
        UserError: naming those of workers, and how to remove them.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    pools: dict[str, str] = {}
    with get_client(sync_client=True) as client:
        for name in names:
            with suppress(ObjectNotFound):
                deployment = client.read_deployment_by_name(name)
                if deployment.work_pool_name:
                    pools[name] = deployment.work_pool_name
        url = client.api_url
    if pools:
        name, pool = next(iter(pools.items()))
        remove = "; ".join(f"prefect deployment delete {name}" for name in pools)
        raise UserError(
            f"{name} at {url} is a deployment for the workers of the pool {pool!r}, and serving would take its place: "
            f"start a worker instead, or remove what was deployed: {remove}"
        )


def read_deployments(path: Path) -> "list[RunnerDeployment]":
    """Return a Prefect deployment for each entry of a prefect.yaml, its work pool left out.

    Raises:
        UserError: the file is missing or says what cannot be served.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.deployments.runner import RunnerDeployment

    deployments = []
    for entry in read_entries(path):
        schedules = entry.all_schedules()
        limit: int | ConcurrencyLimitConfig | None
        if isinstance(entry.concurrency_limit, dict):
            limit = ConcurrencyLimitConfig.model_validate(entry.concurrency_limit)
        else:
            limit = entry.concurrency_limit
        deployments.append(
            RunnerDeployment.from_entrypoint(
                entry.entrypoint,
                entry.name,
                parameters=entry.parameters,
                schedules=schedules,
                concurrency_limit=limit,
                description=entry.description,
                tags=entry.tags,
                paused=False,  # as the last Ctrl-C left them
            )
        )
    return deployments


def read_entries(path: Path) -> list[ServedDeployment]:
    """Return the deployments that a prefect.yaml names.

    Raises:
        UserError: the file is missing, or not of the form that Prefect reads.
    """
    tree = read_yaml(path, "file of deployments", "run this in the project's folder")
    try:
        deployments = ServedFile.model_validate(tree).deployments
        for one in deployments:
            _refuse_secrets(one)
        return deployments
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "its content"
        raise UserError(f"{path.name}: {place}: {fault['msg']}") from None


def _refuse_secrets(deployment: ServedDeployment) -> None:
    parameters = deployment.parameters or {}
    if without_secrets(parameters) != parameters:
        raise UserError(
            f"the deployment {deployment.name!r} has a parameter with what may be a password or a token, and Prefect"
            " would keep it: set it in the environment's ELDER_SET"
        )


def read_schedule(name: str, values: dict[str, Json]) -> "Schedule":
    """Return one schedule of a deployment.

    Args:
        name: of the deployment, for a sentence that refuses it.
        values: as prefect.yaml has them; ``interval`` in seconds.

    Raises:
        UserError: naming the deployment and the value that is wrong.
    """
    from prefect.schedules import Schedule

    given = [key for key in WHEN if values.get(key) is not None]
    if len(given) != 1:
        raise UserError(
            f"the deployment {name!r} has a schedule that says {' and '.join(given) or 'nothing'}; "
            f"give one of {', '.join(WHEN)}"
        )
    key = given[0]
    value = values[key]
    timezone = values.get("timezone")
    if timezone is not None and not _is_timezone(timezone):
        raise UserError(
            f"the deployment {name!r} has a schedule with timezone {timezone!r}, which is none; "
            "give a name such as Europe/Berlin or Etc/UTC"
        )
    try:
        if key == "interval":
            values = values | {"interval": timedelta(seconds=value)}
        elif not isinstance(value, str):
            raise TypeError("it must be a text")
        return Schedule(**values)
    except (ValueError, TypeError, OverflowError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"the deployment {name!r} has a schedule with {key} {value!r}, "
            f"which Prefect refuses: {said}"
        ) from None


def _is_timezone(name: Json) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        return False
    return True
