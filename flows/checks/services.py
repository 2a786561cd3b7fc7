"""Whether the services that a run uses answer: store, registry, Prefect server, worker, webhook, DVC remote.

Each function asks one of them; it returns a sentence of what it saw, or raises a UserError that names the service and
says how to mend it.
"""

from contextlib import suppress
from pathlib import Path

from elder.errors import UserError
from elder.params import Params
from elder.secrecy import shown_address

POOL = "elder"  # the work pool of prefect.yaml
PROBE = ".write-check"


def store(settings: Params, root: Path) -> str:
    """Write to the store, and see that nobody can replace a decision where decisions lie.

    Where they lie in a place of their own, which others may write to, only those who may can see that, and do so with
    each decision: a run needs no more there than to read.
    """
    from tasks.retry import little_patience
    from tasks.store.open import configured_store, history_store

    configured = configured_store(settings.store, root)
    with little_patience():
        configured.check(creates=settings.store.history is None)
        if settings.store.history is not None:
            history_store(settings.store, root).paths("history")
    return configured.url


def history(settings: Params, root: Path) -> str:
    """Try whether somebody with the present credentials can rewrite decisions."""
    from tasks.retry import little_patience
    from tasks.store.open import history_store

    decisions = history_store(settings.store, root)
    with little_patience():
        return f"{decisions.url}: {decisions.how_kept('history')}"


def registry(settings: Params, _: Path) -> str:
    """Ask the registry."""
    from tasks.registry.client import Registry
    from tasks.retry import little_patience

    with little_patience():
        Registry(settings.registry).check_store(settings.store)
    return shown_address(settings.registry.tracking_uri)


def webhook(settings: Params, _: Path) -> str:
    """Look whether the webhook's address can be one; nothing is sent."""
    from tasks.run.notify import check_webhook, receiver

    check_webhook(settings.notify)
    return receiver(settings.notify) or "none: nobody is told how a run ends"


def prefect_server(_: Params, __: Path) -> str:
    """Ask the Prefect server, where one is set."""
    url = _prefect_url()
    if not url:
        return "no PREFECT_API_URL: each run starts a server of its own"
    from httpx import HTTPStatusError
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        if client.api_healthcheck():
            raise UserError(
                f"the Prefect server at {url} does not answer; start it, or unset PREFECT_API_URL"
            )
        try:
            client.read_work_pools(limit=1)
        except HTTPStatusError as error:
            if error.response.status_code in (401, 403):
                raise UserError(
                    f"the Prefect server at {url} lets nobody in without its PREFECT_API_AUTH_STRING; set it"
                ) from None
            raise UserError(
                f"the Prefect server at {url} answers with {error.response.status_code}; its log says why"
            ) from None
    return url


def worker(_: Params, __: Path) -> str:
    """Look whether someone runs what is scheduled."""
    if not _prefect_url():
        return "none is needed without PREFECT_API_URL"
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    start = f"prefect worker start --pool {POOL} --type process"
    with get_client(sync_client=True) as client:
        try:
            status = getattr(client.read_work_pool(POOL).status, "value", "NOT_READY")
        except ObjectNotFound:
            return f"no work pool {POOL!r}: what is scheduled needs `elder serve`, or a worker: {start}"
        except HTTPError:
            raise UserError(
                "cannot be told while the Prefect server does not answer; see prefect"
            ) from None
    if status == "PAUSED":
        raise UserError(
            f"the work pool {POOL!r} is paused; resume it: prefect work-pool resume {POOL}"
        )
    if status != "READY":
        raise UserError(
            f"the work pool {POOL!r} has no live worker, so nothing that is scheduled runs; start one: {start}"
        )
    return f"work pool {POOL!r} has a live worker"


def _prefect_url() -> str | None:
    """Return what is shown of the server's address, which is in the environment or in Prefect's profile.

    Raises:
        UserError: it is no address, so that Prefect's client would fail with it as it stands.
    """
    from httpx import URL, InvalidURL
    from prefect.settings import get_current_settings

    address = get_current_settings().api.url
    if not address:
        return None
    with suppress(InvalidURL):
        if URL(address).host and address.startswith(("http://", "https://")):
            return shown_address(address)
    raise UserError(
        "PREFECT_API_URL is no address of a server: set it to http://host:port/api, or unset it"
    )


def data_remote(_: Params, root: Path) -> str:
    """Write to the DVC remote, where there is one, as `dvc push` would."""
    from tasks.data import remote_name

    name = remote_name(root)
    if name is None:
        return "no DVC remote: each machine makes the data itself, with dvc repro"
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            remote = repo.cloud.get_remote_odb(name)
            place = remote.fs.unstrip_protocol(remote.path)
            remote.fs.makedirs(remote.path, exist_ok=True)
            probe = remote.fs.join(remote.path, PROBE)
            remote.fs.pipe_file(probe, b"")
            remote.fs.remove(probe)
    except DvcException as error:
        raise UserError(f"DVC remote {name!r}: {error}; correct .dvc/config") from None
    except FileNotFoundError:
        raise UserError(
            f"DVC remote {name!r}: {place} is not there; make the bucket or correct its url"
        ) from None
    except PermissionError:
        raise UserError(
            f"DVC remote {name!r}: {place} is closed to these credentials; set the AWS variables"
        ) from None
    except Exception as error:
        # what a file system raises where nothing answers is its own
        raise UserError(
            f"DVC remote {name!r}: nothing answers ({type(error).__name__}); start it, or correct url and endpointurl"
        ) from None
    return place
