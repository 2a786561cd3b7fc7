"""An audit names what lies in a store under a name or in a form that no model has; it writes and follows none of it."""

import os
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from elder import params
from elder.errors import UserError
from tasks.audit.record import find_data
from tasks.audit.reproduce import make_again
from tasks.audit.run import audit
from tasks.store.open import open_store
from tasks.store.s3 import S3Store
from tests.tasks.audit.published import Version, broken, md5
from tests.tasks.audit.tampering import point_to

pytestmark = pytest.mark.usefixtures("credentials")


@pytest.fixture
def on_s3(server: str, tmp_path: Path) -> S3Store:
    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    bucket = f"audit-{os.getpid()}-{abs(hash(tmp_path)):x}"
    client.create_bucket(Bucket=bucket)
    store = open_store(f"s3://{bucket}/store", server, "us-east-1")
    assert isinstance(store, S3Store)
    return store


def move_to_s3(
    settings: params.Params, version: Version, store: S3Store, tmp_path: Path
) -> params.Params:
    """Let the version lie on S3, and the registry say so; returns the parameters of there."""
    local = open_store(settings.store.url)
    copy = local.fetch(version.url, tmp_path / "copy")
    url = store.publish(copy, version.name).url
    point_to(version, url)
    version.place = url
    section = params.Store(url=store.url, endpoint=store.endpoint, region="us-east-1")
    return settings.model_copy(update={"store": section})


def test_a_key_with_an_absolute_name_is_named_and_writes_nothing(
    settings: params.Params,
    root: Path,
    version: Version,
    on_s3: S3Store,
    tmp_path: Path,
) -> None:
    there = move_to_s3(settings, version, on_s3, tmp_path)
    before = broken(there, root, version)
    assert "names" not in before
    victim = tmp_path / "home" / ".ssh" / "authorized_keys"
    victim.parent.mkdir(parents=True)
    key = f"{version.place.removeprefix(f's3://{on_s3.bucket}/')}/{victim}"
    on_s3.client.put_object(Bucket=on_s3.bucket, Key=key, Body=b"ssh-rsa AAAA")
    after = broken(there, root, version)
    assert after.keys() - before.keys() == {"names"}
    assert after["names"] == f"'{victim}' leads outside"
    assert list(victim.parent.iterdir()) == []


def link_to_a_file(version: Version, elsewhere: Path) -> str:
    (version.place / "README.md").rename(elsewhere / "README.md")
    (version.place / "README.md").symlink_to(elsewhere / "README.md")
    return "'README.md' is a symbolic link"


def link_to_a_folder(version: Version, elsewhere: Path) -> str:
    (version.place / "more").symlink_to(elsewhere)
    return "'more' is a symbolic link"


def the_models_own_folder(version: Version, elsewhere: Path) -> str:
    version.place.rename(elsewhere / "model")
    version.place.symlink_to(elsewhere / "model")
    return f"{version.place.name}' is a symbolic link"


def a_pipe(version: Version, elsewhere: Path) -> str:
    os.mkfifo(version.place / "pipe")
    return "'pipe' is no regular file"


def a_clash(version: Version, elsewhere: Path) -> str:
    (version.place / "readme.md").write_text("another")
    return "'readme.md' differs from 'README.md' in case or Unicode form alone"


SPOILT = [link_to_a_file, link_to_a_folder, the_models_own_folder, a_pipe, a_clash]


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_no_model_has_is_named_in_a_local_store(
    settings: params.Params,
    root: Path,
    version: Version,
    tmp_path: Path,
    spoil: Callable[[Version, Path], str],
) -> None:
    (tmp_path / "elsewhere").mkdir()
    said = spoil(version, tmp_path / "elsewhere")
    assert said in broken(settings, root, version)["names"]
    with pytest.raises(UserError, match="is not what it was, so its record cannot"):
        make_again(settings, root, f"{version.name}/{version.number}")


def test_a_link_in_place_of_all_models_is_named(
    settings: params.Params, root: Path, version: Version, tmp_path: Path
) -> None:
    folder = version.place.parent
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    try:
        result = audit(settings, root, f"{version.name}/{version.number}")
    finally:
        folder.unlink()
        (tmp_path / "moved").rename(folder)
    assert "names" in result.broken
    assert f"'models/{version.name}' is a symbolic link" in result.checks[0].detail


@pytest.mark.parametrize(
    ("name", "digest", "said"),
    [
        ("../../secret.txt", md5(), "leads outside"),
        ("/etc/passwd", md5(), "leads outside"),
        ("in_domain.txt", "../../../etc/passwd", "as the md5 of in_domain.txt"),
        ("in_domain.txt", "", "as the md5 of in_domain.txt"),
    ],
)
def test_no_data_of_a_record_lies_outside_the_project(
    tmp_path: Path, name: str, digest: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        find_data(tmp_path, name, digest)
