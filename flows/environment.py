"""What a process of the pipeline needs around it: its folder, and what its libraries are told."""

import logging
import os
from pathlib import Path
from traceback import format_exception
from typing import Any

from elder.errors import UserError
from elder.process import prepare_libraries
from elder.secrecy import hide_given_secrets

DEFAULTS = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # failures are said once, by this command
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",  # its own server says at length what it then does once more
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "1",
}


def project_root() -> Path:
    """Return the folder of dvc.yaml: this one.

    Raises:
        UserError: if there is none here.
    """
    if not Path("dvc.yaml").is_file():
        raise UserError(
            "there is no dvc.yaml here; run this in the project's folder, where params.yaml and dvc.yaml are"
        )
    return Path.cwd()


def prepare_environment() -> None:
    """Set what the libraries should do unless the user says otherwise: no telemetry, no chatter, results kept."""
    prepare_libraries()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.setLogRecordFactory(_record_without_secrets)


def _record_without_secrets(*args: Any, **named: Any) -> logging.LogRecord:
    """Make the record of one line of a log: libraries log addresses that they are given, and Prefect keeps lines."""
    record = logging.LogRecord(*args, **named)
    if isinstance(record.msg, str):
        record.msg = hide_given_secrets(record.msg)
    if isinstance(record.args, tuple):
        record.args = tuple(map(_without_secrets, record.args))
    elif record.args:
        record.args = {key: _without_secrets(record.args[key]) for key in record.args}
    if record.exc_info and record.exc_info[1]:
        # what a formatter would make of the exception itself
        record.exc_text = hide_given_secrets(
            "".join(format_exception(record.exc_info[1]))
        ).rstrip()
    return record


def _without_secrets(value: object) -> object:
    """Return what a line of a log shows of a value: numbers as they are, others as text if they hold a secret."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    hidden = hide_given_secrets(text)
    return value if hidden == text else hidden
