"""Who acts, as something that knows says it: MLflow's account, or the operating system's user; no variable does."""

import os
import pwd
import socket
from dataclasses import dataclass

import httpx

from elder import params

LONGEST_WAIT = 10  # seconds


@dataclass(frozen=True)
class Identity:
    """Who acts.

    Attributes:
        name: ``anna@desk``, or ``anna`` of an MLflow server.
        vouched_by: who says so: ``operating system`` or ``MLflow account``.
    """

    name: str
    vouched_by: str


def who_acts(settings: params.Registry) -> Identity:
    """Return the account that MLflow's server lets in, or else the user of this process."""
    account = _mlflow_account(settings.tracking_uri)
    if account:
        return Identity(account, "MLflow account")
    return Identity(operating_system_user(), "operating system")


def operating_system_user() -> str:
    """Return the user that this process runs as, by its number and not by its environment, and the machine."""
    number = os.geteuid()
    try:
        user = pwd.getpwuid(number).pw_name
    except KeyError:  # a container whose user id has no name
        user = str(number)
    return f"{user}@{socket.gethostname()}"


def _mlflow_account(uri: str) -> str | None:
    """Return the account whose password an MLflow server accepts; None where it asks for none.

    A server without accounts lets any name in, and does not know the page that tells of one.
    """
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user or not uri.startswith(("http://", "https://")):
        return None
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    try:
        answer = httpx.get(
            f"{uri.rstrip('/')}/api/2.0/mlflow/users/get",
            params={"username": user},
            auth=(user, password),
            timeout=LONGEST_WAIT,
        )
        answered = answer.status_code == 200 and answer.json()["user"]["username"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return user if answered == user else None
