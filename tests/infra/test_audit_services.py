"""Tampering on PostgreSQL and the S3 server is found as it is on SQLite and a folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from elder import params
from elder.settings import validate
from tasks.store.open import open_store
from tests.tasks.audit import published
from tests.tasks.audit import test_tampering as local
from tests.tasks.audit.conftest import publish_version, root, shallow  # noqa: F401 - fixtures
from tests.tasks.audit.published import Version, broken
from tests.tasks.audit.test_tampering import TAMPERED

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", autouse=True)
def signed_in(services: SimpleNamespace) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in services.role("admin").items():
            if name.startswith(("AWS_", "MLFLOW_")):
                patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def settings(root: Path, services: SimpleNamespace, signed_in: None) -> params.Params:  # noqa: F811
    tree = published.parameters(root)
    endpoint = f"http://127.0.0.1:{services.values['S3_PORT']}"
    tree["store"] = {
        "url": "s3://elder/audited",
        "endpoint": endpoint,
        "region": "us-east-1",
    }
    tree["registry"]["tracking_uri"] = services.env["MLFLOW_TRACKING_URI"]
    return validate(tree)


@pytest.fixture
def version(
    settings: params.Params,
    publish_version: Callable[..., Version],  # noqa: F811
    services: SimpleNamespace,
    tmp_path: Path,
) -> Version:
    """Publish a version; its ``place`` is a copy, which `put_back` writes into the bucket."""
    made = publish_version()
    store = open_store(
        settings.store.url, settings.store.endpoint, settings.store.region
    )
    made.place, made.services = (
        tmp_path / "copy" / made.url.rpartition("/")[2],
        services,
    )
    made.place.mkdir(parents=True)
    store.as_it_lies(made.url, made.place)
    return made


def put_back(version: Version) -> None:
    """Make the bucket hold what the copy holds."""
    client, prefix = (
        version.services.s3(),
        version.url.removeprefix("s3://elder/") + "/",
    )
    there = {
        item["Key"]
        for item in client.list_objects_v2(Bucket="elder", Prefix=prefix)["Contents"]
    }
    files = {
        prefix + path.relative_to(version.place).as_posix(): path
        for path in version.place.iterdir()
    }
    for key in there - set(files):
        client.delete_object(Bucket="elder", Key=key)
    for key, path in files.items():
        client.put_object(Bucket="elder", Key=key, Body=path.read_bytes())


def repointed(version: Version) -> None:
    other, values = version.again(), version.services.values
    address = f"host=127.0.0.1 port={values['POSTGRES_PORT']} dbname=mlflow user=mlflow"
    change = "update model_versions set source = %s, storage_location = %s where name = 'shallow' and version = %s"
    with psycopg.connect(
        f"{address} password={values['MLFLOW_DB_PASSWORD']}"
    ) as connection:
        assert (
            connection.execute(
                change, (other.url, other.url, int(version.number))
            ).rowcount
            == 1
        )


def artifact_missing(version: Version) -> None:
    client = version.services.s3()
    keys = [
        item["Key"]
        for item in client.list_objects_v2(Bucket="elder-mlflow")["Contents"]
    ]
    (attached,) = [
        key for key in keys if key.endswith(f"{version.run}/artifacts/record.json")
    ]
    client.delete_object(Bucket="elder-mlflow", Key=attached)


THERE: dict[Any, Callable[[Version], None]] = {
    local.repointed: repointed,
    local.artifact_missing: artifact_missing,
}


def test_an_honest_version_holds_in_everything(
    settings: params.Params,
    root: Path,  # noqa: F811
    version: Version,
) -> None:
    assert broken(settings, root, version) == {}


@pytest.mark.parametrize(("tamper", "expected", "named"), TAMPERED)
def test_every_kind_of_tampering_is_found_and_named(
    settings: params.Params,
    root: Path,  # noqa: F811
    version: Version,
    tamper: Callable[[Version], None],
    expected: set[str],
    named: str,
) -> None:
    THERE.get(tamper, tamper)(version)
    put_back(version)
    found = broken(settings, root, version)
    assert set(found) == expected
    assert named in " ".join(found.values())
