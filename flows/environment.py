"""What a process of the pipeline needs around it: its folder, and what its libraries are told."""

import os
import signal
from pathlib import Path

from elder.errors import UserError
from elder.process import prepare_libraries


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
    defaults = {
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # failures are said once, by this command
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def end_as_after_ctrl_c() -> None:
    """Let SIGTERM close what is open, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
