"""What tests of the roles do: act as one of them, with its credentials, its key and nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from elder import params
from elder.settings import read_params

ELDER = [sys.executable, "-c", "from flows.cli import main; main()"]
ACCOUNTS = ("AWS_", "MLFLOW_", "ELDER_SET")
NAME = "roles"


@dataclass(frozen=True)
class Person:
    """Somebody with a role.

    Attributes:
        services: that run.
        role: which.
        folder: where commands are given.
    """

    services: SimpleNamespace
    role: str
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """Return the environment of a shell."""
        return self.services.role(self.role)

    def elder(self, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        """Give a command, with more overrides."""
        env = self.env
        wanted = " ".join(f"{key}={value}" for key, value in more.items())
        env["ELDER_SET"] += f" registry.name={NAME} {wanted}"
        done = subprocess.run(
            [*ELDER, *arguments],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def decide(self, *arguments: str, **more: str) -> subprocess.CompletedProcess:
        return self.elder(*arguments, "--yes", "--reason", "better", **more)

    def history(self) -> dict[str, Any]:
        """Return what ``elder history`` says; its faults are in it."""
        return json.loads(self.elder("history", NAME, "--json").stdout)

    def s3(self) -> Any:
        env = self.env
        key, secret = env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
        return self.services.s3(aws_access_key_id=key, aws_secret_access_key=secret)

    @contextmanager
    def acting(self) -> Iterator[params.Params]:
        """Do what is in the block with this person's accounts; gives the parameters of its commands."""
        env = self.env
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(ACCOUNTS)]:
                patch.delenv(name)
            for name in [name for name in env if name.startswith(ACCOUNTS)]:
                patch.setenv(name, env[name])
            patch.chdir(self.folder)
            yield read_params(None, None, {"registry.name": NAME})


def denied(act: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
    """Do something, and say whether the S3 server or MLflow refuses to let this person do it."""
    from mlflow.exceptions import MlflowException

    try:
        act(*arguments, **named)
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    except MlflowException as error:
        return error.error_code == "PERMISSION_DENIED"
    return False
