"""The way to MLflow: an address that can be used, a client that got one answer, and its refusals in plain sentences."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from elder import params
from elder.errors import UserError
from tasks.errors import Unreachable, hide_secrets, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
SCHEMES = (SQLITE, "postgresql", "mysql", "mssql", "http://", "https://")
LONGEST = 300  # characters of MLflow's own words in a sentence


def connect(settings: params.Registry) -> "MlflowClient":
    """Return an MLflow client after one successful request; an SQLite database is made where there is none.

    Raises:
        UserError: the tracking URI is not usable, or nothing answers there.
    """
    # MLflow's own default keeps trying an absent server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Its server would send clients to the bucket itself, by a name that may be known to the server alone.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    # It would print the run's address on stdout, where --json promises one object.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    uri = absolute(settings.tracking_uri)
    with plain_refusals(settings):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.get_experiment_by_name(settings.experiment)
    return client


def absolute(uri: str) -> str:
    """Make the path of an SQLite URI absolute, so that other working directories find the same database.

    Raises:
        UserError: the URI is of no kind that MLflow takes, or names a file that is no database.
    """
    if not uri.startswith(SCHEMES):
        raise UserError(
            f"registry.tracking_uri {hide_secrets(uri)!r}: name sqlite:///FILE, a database (postgresql://...) or the"
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
    return f"{SQLITE}{path}"


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of the database that an SQLite URI names; None for other URIs."""
    if not uri.startswith(SQLITE):
        return None
    return Path(uri.removeprefix(SQLITE)).absolute()


@contextmanager
def plain_refusals(settings: params.Registry) -> Iterator[None]:
    """Turn MLflow's and the database's refusals into a UserError of one sentence without secrets.

    The cause is left out of the chain: its text may hold the address with its password.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    place = f"MLflow at {hide_secrets(settings.tracking_uri)}"
    try:
        yield
    except MlflowException as error:
        text = hide_secrets(str(error.message)).strip().partition("\n")[0][:LONGEST]
        if "error code 401" in text:
            raise UserError(
                f"{place}: it does not know this user: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from None
        if "Max retries exceeded" in text or "failed with exception" in text:
            raise Unreachable(
                f"{place}: it cannot be reached: start it, or correct registry.tracking_uri"
            ) from None
        raise UserError(f"{place}: {text}") from None
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise UserError(
            f"{place}: the database cannot be used ({type(error).__name__}): check it and its address"
        ) from None
