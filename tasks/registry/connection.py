"""The way to MLflow: an address that can be used, a client that waits for answers, and its refusals in sentences."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from elder import params
from elder.errors import UserError
from elder.secrecy import hide_secrets, shown_address
from tasks.errors import Unreachable, plain_errors
from tasks.retry import patient, patiently

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
SERVERS = ("postgresql", "mysql", "mssql")
SCHEMES = (SQLITE, *SERVERS, "http://", "https://")
LONGEST = 300  # characters of MLflow's own words in a sentence
# Made twice they would make two of what should be one: whoever calls these looks first, and calls again himself.
CREATING = {"create_run", "create_model_version"}
# What MLflow and `requests` say where a server does not answer, or answers that it cannot just now.
AWAY = re.compile(
    r"Max retries exceeded|failed with (?:timeout )?exception|error code (?:408|429|5\d\d)"
)
# What databases say where trying again is of no use, although their drivers call it operational.
LASTING = re.compile(
    r"authentication|password|role |pg_hba|does not exist|permission|access denied|read-?only|no such|no column|syntax"
    r"|unable to open|malformed|not a database|disk (?:is )?full|disk I/O|No space|Unknown database",
    re.IGNORECASE,
)
LOCKED = re.compile(r"database (?:table |schema )?is locked")


def connect(settings: params.Registry) -> "MlflowClient":
    """Return an MLflow client after one successful request; an SQLite database is made where there is none.

    Its calls wait for a server or a database that does not answer, except for those that create what is not to be there
    twice (``CREATING``).

    Raises:
        UserError: the tracking URI is not usable, or nothing answers there.
    """
    # Tried again here, and not by MLflow, which would send what creates something twice as well.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Its server would send clients to the bucket itself, by a name that may be known to the server alone.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    # It would print the run's address on stdout, where --json promises one object.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    uri = absolute(settings.tracking_uri)
    reach_database(uri)
    with plain_refusals(settings):
        from mlflow import MlflowClient

        # it would print the whole trace of what is told in a sentence
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        bare = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client = cast("MlflowClient", PatientClient(bare, place_of(settings)))
        client.get_experiment_by_name(settings.experiment)
        if not uri.startswith("http"):
            # its registry connects with the first question, and would be tried for minutes as well
            client.search_registered_models(max_results=1)
    return client


class PatientClient:
    """MLflow's client, whose calls are made again while nothing answers."""

    def __init__(self, client: "MlflowClient", place: str) -> None:
        self._client = client
        self._place = place

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method

        def once(*args: Any, **kwargs: Any) -> Any:
            with _waitable(self._place):
                return method(*args, **kwargs)

        return once if name in CREATING else patient(once)


def absolute(uri: str) -> str:
    """Make the path of an SQLite URI absolute, so that other working directories find the same database.

    Raises:
        UserError: the URI is of no kind that MLflow takes, or names a file that is no database.
    """
    if not uri.startswith(SCHEMES) or "://" not in uri:
        raise UserError(
            "registry.tracking_uri: name sqlite:///FILE, a database (postgresql://...) or the"
            " http(s):// address of an MLflow server"
        )
    path = sqlite_file(uri)
    if path is None:
        return uri
    with plain_errors(path):  # MLflow itself would retry a hopeless file for minutes
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as handle:
            handle.seek(0)
            start = handle.read(16)
    if start not in (b"", b"SQLite format 3\0"):
        raise UserError(
            f"registry.tracking_uri: {path} is not an SQLite database: name another file"
        )
    return f"{SQLITE}{path}{uri[len(_without_query(uri)) :]}"


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of the database that an SQLite URI names; None for other URIs."""
    if not uri.startswith(SQLITE):
        return None
    return Path(_without_query(uri).removeprefix(SQLITE)).absolute()


def _without_query(uri: str) -> str:
    return uri.partition("?")[0]


def place_of(settings: params.Registry) -> str:
    """Return how sentences call the registry."""
    return f"MLflow at {shown_address(settings.tracking_uri)}"


def reach_database(uri: str) -> None:
    """Connect once to the database that a tracking URI names, as MLflow would try a dead one for minutes, in silence.

    Raises:
        Unreachable: it does not answer, or somebody holds it, for as long as the patience lasts.
        UserError: its driver is missing, it refuses this user, or the address is none.
    """
    if not uri.startswith((SQLITE, *SERVERS)):
        return
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

    place = f"registry.tracking_uri {shown_address(uri)}"
    try:
        # SQLite would wait in silence for whoever holds its file
        engine = create_engine(
            uri, connect_args={"timeout": 1} if uri.startswith(SQLITE) else {}
        )
    except (ImportError, NoSuchModuleError) as error:
        raise UserError(
            f"{place}: the database's driver is missing ({error}); install it"
        ) from None
    except ArgumentError:
        raise UserError(
            "registry.tracking_uri is no address of a database; correct it"
        ) from None

    def once() -> None:
        try:
            with engine.connect() as connection:
                if uri.startswith(
                    SQLITE
                ):  # which looks at its file with the first question
                    connection.exec_driver_sql("SELECT 1 FROM sqlite_master")
        except DBAPIError as error:
            raise _database_refusal(place, str(error.orig)) from None

    try:
        patiently(once)
    finally:
        engine.dispose()


def _database_refusal(place: str, text: str) -> UserError:
    """Return what a database that cannot be connected to is told as."""
    if LOCKED.search(text):
        return Unreachable(f"{place}: somebody holds the database; wait, or end that")
    if "authentication" in text or "role" in text:
        return UserError(
            f"{place}: the database does not accept this user and password; correct them"
        )
    if "does not exist" in text:
        return UserError(f"{place}: the server has no such database; create it")
    return Unreachable(
        f"{place}: the database cannot be reached; start it, or correct the address"
    )


@contextmanager
def _waitable(place: str) -> Iterator[None]:
    """Turn what passes by itself into an ``Unreachable``, and leave all other failures as they are."""
    try:
        yield
    except Exception as error:
        passing = _passing(error)
        if passing is None:
            raise
        raise Unreachable(f"{place}: {passing}") from None


def _passing(error: BaseException) -> str | None:
    """Return what is said of a failure that may pass, or None of another one."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import ChunkedEncodingError, ConnectionError, Timeout
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    if isinstance(error.__cause__, MlflowException):  # told anew in other words
        return _passing(error.__cause__)
    text = str(error)
    cause = error.__cause__ if isinstance(error, MlflowException) else error
    if isinstance(cause, DBAPIError):
        if LOCKED.search(text):
            return "somebody holds the database: wait, or end that"
        dropped = isinstance(cause, OperationalError | InterfaceError)
        if (dropped or cause.connection_invalidated) and not LASTING.search(text):
            return "the connection to the database broke: start it, or look why"
        return None
    if isinstance(error, JSONDecodeError | ChunkedEncodingError):
        return "its answer broke off: look at the server and what stands before it"
    away = isinstance(error, MlflowException) and AWAY.search(text)
    if away or isinstance(error, ConnectionError | Timeout):
        return "it cannot be reached: start it, or correct registry.tracking_uri"
    return None


@contextmanager
def plain_refusals(settings: params.Registry) -> Iterator[None]:
    """Turn MLflow's and the database's refusals into a UserError of one sentence without secrets.

    The cause is left out of the chain: its text may hold the address with its password.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    place = place_of(settings)
    try:
        with _waitable(place):
            yield
    except MlflowException as error:
        text = hide_secrets(str(error.message)).strip().partition("\n")[0][:LONGEST]
        if "error code 401" in text:
            raise UserError(
                f"{place}: it does not know this user: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from None
        if "error code 403" in text:
            raise UserError(
                f"{place}: this account may not do that there, or what it names is not there: check the name, or use"
                " an account with more rights"
            ) from None
        raise UserError(f"{place}: {text}") from None
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise UserError(
            f"{place}: the database cannot be used ({type(error).__name__}): check it and its address"
        ) from None
