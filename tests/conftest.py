"""What all tests share: one thread, no network, no telemetry, and a Prefect home of their own."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

QUIET = {
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
HOME = pytest.StashKey[str]()
TESTS = Path(__file__).parent
SLOWEST = (
    "infra",
    "flows",
    "tasks",
)  # folders, first to start where several processes share the tests


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any library reads it; processes that tests start inherit it."""
    os.environ.update(QUIET)
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = config.stash[HOME] = tempfile.mkdtemp(
        prefix="elder-tests-prefect-"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process of pytest-xdist, and those of the services all together."""

    def place(item: pytest.Item) -> tuple[str, ...]:
        return item.path.relative_to(TESTS).parts

    for item in items:
        shared = "infra" if place(item)[0] == "infra" else str(item.path)
        item.add_marker(pytest.mark.xdist_group(shared))
    rank = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(place(item)[0], len(rank)))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take the temporary home away."""
    shutil.rmtree(config.stash[HOME], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
