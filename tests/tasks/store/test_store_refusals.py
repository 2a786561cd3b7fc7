"""What the store refuses, in one clear sentence and without a secret in it."""

import errno
import re
from pathlib import Path

import boto3
import pytest

from elder.errors import UserError
from tasks.errors import Unreachable
from tasks.store import server as server_module
from tasks.store.open import open_store
from tests.tasks.store.refusing import refuse

SECRET = "wJalrXUtnFEMIsecret"
pytestmark = pytest.mark.usefixtures("credentials")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"s3://test:{SECRET}@bucket/x", "no credentials"),
        ("s3://", "a bucket of 3 to 63"),
        ("s3://UPPER/x", "a bucket of 3 to 63"),
        ("gs://bucket/x", "name a local folder or s3"),
        (f"https://user:{SECRET}@host/x", "name a local folder or s3"),
        ("", "name a local folder or s3"),
    ],
)
def test_bad_urls(url, said):
    with pytest.raises(UserError, match=said) as caught:
        open_store(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint",
    ["localhost:9000", f"http://test:{SECRET}@localhost:9000", "ftp://localhost"],
)
def test_bad_endpoints(endpoint):
    with pytest.raises(UserError, match="http://host:port") as caught:
        open_store("s3://bucket/x", endpoint)
    assert SECRET not in str(caught.value)


def test_check_passes_where_a_model_can_be_stored(store):
    store.check()
    store.check()  # also where something is there already
    assert store.paths("") == set()


def test_check_refuses_before_any_work(server, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "ATTEMPTS", 1)
    (tmp_path / "file").write_text("x")
    for url, endpoint, said in [
        (str(tmp_path / "file"), None, "a file stands"),
        ("s3://absent-bucket/x", server, "'absent-bucket' does not exist"),
        ("s3://bucket/x", "http://127.0.0.1:9", "http://127.0.0.1:9 cannot be reached"),
    ]:
        with pytest.raises(UserError, match=re.escape(said)):
            open_store(url, endpoint, "us-east-1").check()


def test_check_proves_that_writing_is_allowed(server, monkeypatch):
    boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(
        Bucket="read-only"
    )
    store, refused = open_store("s3://read-only/x", server, "us-east-1"), set()
    refuse(monkeypatch, store, "AccessDenied", refused, SECRET)
    refused.add("PutObject")
    with pytest.raises(UserError) as caught:
        store.check()
    assert (
        str(caught.value)
        == "s3://read-only/x: access denied: let these credentials list, read and write there; if the bucket demands"
        " encryption, set store.encryption to AES256 or aws:kms"
    )
    assert store.paths("") == set()
    refused.clear()
    refused.add("DeleteObject")  # which storing does not need
    store.check()
    assert store.paths("") == {".write-check"}
    refused.clear()
    store.check()
    assert store.paths("") == set()


def test_only_what_the_network_did_is_worth_another_try(server, folder, monkeypatch):
    monkeypatch.setattr(server_module, "ATTEMPTS", 1)
    with pytest.raises(Unreachable):
        open_store("s3://bucket/x", "http://127.0.0.1:9", "us-east-1").publish(
            folder, "tiny"
        )
    with pytest.raises(UserError) as caught:
        open_store("s3://absent-bucket/x", server, "us-east-1").publish(folder, "tiny")
    assert not isinstance(caught.value, Unreachable)


def test_absent_bucket(server, folder, tmp_path):
    store = open_store("s3://absent-bucket/x", server, "us-east-1")
    for call in (
        lambda: store.publish(folder, "tiny"),
        lambda: store.fetch("models/a/b", tmp_path / "copy"),
    ):
        with pytest.raises(UserError, match="'absent-bucket' does not exist") as caught:
            call()
        assert SECRET not in str(caught.value)


def test_unreachable_endpoint(folder, monkeypatch):
    monkeypatch.setattr(server_module, "ATTEMPTS", 1)
    store = open_store("s3://bucket/x", "http://127.0.0.1:9", "us-east-1")
    with pytest.raises(
        UserError, match=re.escape("http://127.0.0.1:9 cannot be reached")
    ) as caught:
        store.publish(folder, "tiny")
    assert SECRET not in str(caught.value)


def test_no_credentials(server, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no credentials found"):
        open_store("s3://bucket/x", server, "us-east-1").publish(folder, "tiny")
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(UserError, match="check AWS_PROFILE"):
        open_store("s3://bucket/x", server, "us-east-1")


def test_publish_without_the_right_to_list(server, folder, monkeypatch):
    """S3 then answers 403, not 404, when asked about an object that is not there."""
    boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(
        Bucket="no-list"
    )
    store = open_store("s3://no-list", server, "us-east-1")
    refuse(monkeypatch, store, "403", {"HeadObject"})
    published = store.publish(folder, "tiny")
    assert store.verify(published.url) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("AccessDenied", "access denied"),
        ("SignatureDoesNotMatch", "not accepted"),
        ("PermanentRedirect", "another region"),
        ("NoSuchLifecycle", "refused with NoSuchLifecycle"),
    ],
)
def test_refusals_of_the_server(server, folder, monkeypatch, code, said):
    """The text of an answer may hold anything: only its code is shown."""
    store = open_store("s3://bucket/x", server, "us-east-1")
    refuse(monkeypatch, store, code, None, SECRET)
    with pytest.raises(UserError, match=said) as caught:
        store.publish(folder, "tiny")
    assert SECRET not in str(caught.value)


def test_bad_folders_and_names(store, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for bad in (tmp_path / "absent", tmp_path / "empty", folder / "config.json"):
        with pytest.raises(UserError, match="empty or not a folder"):
            store.publish(bad, "tiny")
    for name in ("", "a/b", "../a", ".hidden", "a b"):
        with pytest.raises(UserError, match="use letters"):
            store.publish(folder, name)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="a name that the store needs"):
        store.publish(folder, "tiny")
    for url in ("../x", "/etc", "s3://other/models/a/b"):
        with pytest.raises(UserError, match="does not lie in the store"):
            store.fetch(url, tmp_path / "copy")


def test_store_where_a_file_stands(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a file stands"):
        open_store(str(tmp_path / "file" / "store")).publish(folder, "tiny")


def test_read_only_store(folder, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(
            errno.EACCES, "Permission denied", str(tmp_path / "store")
        )

    monkeypatch.setattr(Path, "mkdir", refuse)  # a mode of 0500 does not stop root
    with pytest.raises(UserError, match="store: access denied"):
        open_store(str(tmp_path / "store")).publish(folder, "tiny")
