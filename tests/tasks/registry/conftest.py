"""Settings for promotions: an MLflow database of their own, with the store in a folder or on S3."""

from pathlib import Path

import pytest

from elder import params
from tasks.registry.client import Registry
from tasks.store.base import Store
from tests.tasks.registered import keys, settings_for


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make the database once: its first start takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('db')}/mlflow.db"
    Registry(params.Registry(tracking_uri=uri))
    return uri


@pytest.fixture(scope="session")
def signing(tmp_path_factory: pytest.TempPathFactory) -> params.Signing:
    return keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def settings(
    store: Store,
    tracking: str,
    signing: params.Signing,
    request: pytest.FixtureRequest,
) -> params.Params:
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return settings_for(
        store.url, tracking, getattr(store, "endpoint", None), name, signing
    )


@pytest.fixture
def local(
    tmp_path: Path,
    tracking: str,
    signing: params.Signing,
    request: pytest.FixtureRequest,
) -> params.Params:
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return settings_for(str(tmp_path / "store"), tracking, None, name, signing)
