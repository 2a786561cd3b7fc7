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
from tests.tasks.audit import tampering as local
from tests.tasks.audit.conftest import publish_version, root, shallow  # noqa: F401 - fixtures
from tests.tasks.audit.published import Version, broken
from tests.tasks.audit.tampering import STORED, TAMPERED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


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
    store = open_store(
        settings.store.url, settings.store.endpoint, settings.store.region
    )

    def make(*section: params.Signing) -> Version:
        made = publish_version(*section)
        made.place = tmp_path / "copies" / made.digest
        made.place.mkdir(parents=True)
        store.as_it_lies(made.url, made.place)
        made.services, made.again = services, make
        made.get, made.put = reader(services), writer(services)
        return made

    return make()


def reader(services: SimpleNamespace) -> Callable[[str], bytes]:
    def get(key: str) -> bytes:
        found = services.s3().get_object(Bucket="elder", Key=f"audited/{key}")
        return found["Body"].read()

    return get


def writer(services: SimpleNamespace) -> Callable[[str, bytes | None], None]:
    def put(key: str, data: bytes | None) -> None:
        place = {"Bucket": "elder", "Key": f"audited/{key}"}
        if data is None:
            services.s3().delete_object(**place)
        else:
            services.s3().put_object(**place, Body=data)

    return put


def put_back(version: Version) -> None:
    """Make the bucket hold what the copy holds."""
    prefix = version.url.removeprefix("s3://elder/audited/")
    there = version.services.s3().list_objects_v2(
        Bucket="elder", Prefix=f"audited/{prefix}/"
    )
    kept = {
        f"{prefix}/{path.relative_to(version.place)}": path
        for path in version.place.rglob("*")
        if path.is_file()
    }
    for item in there["Contents"]:
        key = item["Key"].removeprefix("audited/")
        if key not in kept:
            version.put(key, None)
    for key, path in kept.items():
        version.put(key, path.read_bytes())


def repointed(version: Version) -> None:
    other, values = version.again(), version.services.values
    address = f"host=127.0.0.1 port={values['POSTGRES_PORT']} dbname=mlflow user=mlflow"
    change = "update model_versions set source = %s, storage_location = %s where name = %s and version = %s"
    place = (other.url, other.url, version.name, int(version.number))
    with psycopg.connect(
        f"{address} password={values['MLFLOW_DB_PASSWORD']}"
    ) as connection:
        assert connection.execute(change, place).rowcount == 1


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


def absolute_key_added(version: Version) -> None:
    """Lay a file whose name after the digest is an absolute path, which joined to a folder is itself."""
    prefix = version.url.removeprefix("s3://elder/audited/")
    version.put(f"{prefix}/{version.root}/authorized_keys", b"ssh-ed25519 AAAA")


def weights_of_absolute_key(version: Version) -> None:
    """Lay the weights under such a name, and nowhere else."""
    weights = version.place / "model.safetensors"
    prefix = version.url.removeprefix("s3://elder/audited/")
    version.put(f"{prefix}/{version.root}/model.safetensors", weights.read_bytes())
    version.put(f"{prefix}/model.safetensors", None)


THERE: dict[Any, Callable[[Version], None]] = {
    local.repointed: repointed,
    local.artifact_missing: artifact_missing,
}
# what no copy on a disk can hold
KEYS: list[tuple[Callable[[Version], None], set[str], str]] = [
    (absolute_key_added, {"names"}, "leads outside"),
    (weights_of_absolute_key, {"names", *STORED}, "leads outside"),
]


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


@pytest.mark.parametrize(("tamper", "expected", "named"), KEYS)
def test_a_key_that_leads_elsewhere_is_named_and_never_written(
    settings: params.Params,
    root: Path,  # noqa: F811
    version: Version,
    tamper: Callable[[Version], None],
    expected: set[str],
    named: str,
) -> None:
    tamper(version)
    found = broken(settings, root, version)
    assert set(found) == expected
    assert named in found["names"]
    assert not (root / "authorized_keys").exists()
    assert not (root / "model.safetensors").exists()
