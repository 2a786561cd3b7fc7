"""What all tests share: one thread, no network, no telemetry, and a Prefect home of their own."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

QUIET = {
    "ELDER_PATIENCE": "0",  # what does not answer in a test never will
    "OMP_NUM_THREADS": "1",  # tiny models on a busy machine spend their time waiting for a second thread
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
# before any library reads it, those that other conftests import included
os.environ.update(QUIET)
HOME = pytest.StashKey[str]()
TESTS = Path(__file__).parent
SERVICES = "tests/infra/"
# folders, first to start where several processes share the tests
SLOWEST = ("infra", "flows", "tasks")


def pytest_configure(config: pytest.Config) -> None:
    """Give Prefect a home of its own, which processes that tests start inherit."""
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = config.stash[HOME] = tempfile.mkdtemp(
        prefix="elder-tests-prefect-"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one process of pytest-xdist, and those of the services all together."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return SERVICES if file.startswith(SERVICES) else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes longest start first."""
    rank = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(folder_of(item), len(rank)))


def folder_of(item: pytest.Item) -> str:
    """Return the folder below tests/ that a test lies in."""
    return item.path.relative_to(TESTS).parts[0]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the temporary home away."""
    shutil.rmtree(config.stash[HOME], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
