"""``elder serve``: the deployments of prefect.yaml for those without a worker, in processes of this command."""

import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from elder.errors import UserError
from elder.progress import say
from flows.environment import prepare_environment, project_root


def serve() -> None:
    """Keep the schedules of prefect.yaml without a worker, until Ctrl-C; a Prefect server has to be there."""
    root = project_root()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    prepare_environment()
    from prefect import serve as keep_serving

    check_server()
    deployments = read_deployments(root / "prefect.yaml")
    replace_those_of_workers([deployment.full_name for deployment in deployments])
    names = ", ".join(deployment.full_name for deployment in deployments)
    say(f"serving {names}; Ctrl-C pauses their schedules and ends")
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


def replace_those_of_workers(names: list[str]) -> None:
    """Delete deployments that were made for a worker: what remained of them would send the runs to another folder."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        for name in names:
            with suppress(ObjectNotFound):
                found = client.read_deployment_by_name(name)
                if found.work_pool_name:
                    client.delete_deployment(found.id)


def read_deployments(path: Path) -> list[Any]:
    """Return a Prefect ``RunnerDeployment`` for each deployment of a prefect.yaml, its work pool left out."""
    import yaml
    from prefect.client.schemas.objects import ConcurrencyLimitConfig
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Schedule

    if not path.is_file():
        raise UserError(
            f"there is no {path.name} in {str(path.parent)!r}; run this in the project's folder"
        )
    made = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]:
        limit = entry.get("concurrency_limit")
        schedules = [dict(schedule) for schedule in entry.get("schedules") or []]
        for schedule in schedules:
            if "interval" in schedule:
                schedule["interval"] = timedelta(seconds=schedule["interval"])
        made.append(
            RunnerDeployment.from_entrypoint(
                entry["entrypoint"],
                entry["name"],
                parameters=entry.get("parameters"),
                schedules=[Schedule(**schedule) for schedule in schedules],
                concurrency_limit=ConcurrencyLimitConfig(**limit)
                if isinstance(limit, dict)
                else limit,
                description=entry.get("description"),
                tags=entry.get("tags"),
                paused=False,  # as the last Ctrl-C left them
            )
        )
    return made
