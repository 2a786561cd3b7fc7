"""Buckets that demand encryption: what is said without it, and that every write asks for it where it is set."""

from collections.abc import Callable
from pathlib import Path

import pytest

from elder import params
from elder.errors import UserError
from elder.settings import load_params
from tasks.store.open import configured_store
from tasks.store.s3 import S3Store
from tests.tasks.store.faulty import Fault, Faulty, Request

pytestmark = pytest.mark.usefixtures("credentials")
HEADER = "x-amz-server-side-encryption"
KEY = f"{HEADER}-aws-kms-key-id"


def writes(request: Request) -> bool:
    """Say whether a request begins or is a write of an object; parts belong to what was begun."""
    whole = request.method == "PUT" and "partNumber" not in request.path
    return whole or request.method == "POST" and "uploads" in request.path


def demanding(request: Request) -> Fault | None:
    """Be a bucket whose policy denies what is not encrypted."""
    wanted = writes(request) and HEADER not in request.headers
    return Fault(403, "AccessDenied") if wanted else None


@pytest.fixture
def encrypting(
    relayed: S3Store, relay: Faulty, tmp_path: Path
) -> Callable[..., S3Store]:
    def opened(**values: str) -> S3Store:
        settings = params.Store(
            url=relayed.url, endpoint=relay.url, region="us-east-1", **values
        )
        store = configured_store(settings, tmp_path)
        assert isinstance(store, S3Store)
        return store

    return opened


def test_the_refusal_names_the_parameter(encrypting, relay, folder):
    relay.fault = demanding
    with pytest.raises(UserError, match=r"denied.* set store\.encryption to AES256 or"):
        encrypting().check()
    with pytest.raises(UserError, match=r"denied.* set store\.encryption to AES256 or"):
        encrypting().publish(folder, "tiny")


@pytest.mark.parametrize(
    ("values", "headers"),
    [
        ({"encryption": "AES256"}, {HEADER: "AES256"}),
        ({"encryption": "aws:kms"}, {HEADER: "aws:kms"}),
        (
            {"encryption": "aws:kms", "kms_key": "alias/elder"},
            {HEADER: "aws:kms", KEY: "alias/elder"},
        ),
    ],
)
def test_every_write_asks_for_it(encrypting, relay, folder, tmp_path, values, headers):
    relay.fault = demanding
    store = encrypting(**values)
    store.check()
    published = store.publish(folder, "tiny")
    assert store.create("history/1", b"decided")
    written = [request.headers for request in relay.seen if writes(request)]
    # the probe and its two creates, two small files, the large one, the manifest, the decision
    assert len(written) == 8
    for sent in written:
        told = {key.lower(): value for key, value in sent.items()}
        assert {key: told.get(key) for key in headers} == headers
    assert store.verify(published.url) == []
    store.fetch(published.url, tmp_path / "copy")


def test_a_key_that_may_not_be_used(encrypting, relay):
    relay.fault = lambda request: (
        Fault(403, "AccessDenied") if writes(request) else None
    )
    with pytest.raises(UserError, match=r"use the key of store\.encryption"):
        encrypting(encryption="aws:kms").check()


def test_a_server_that_does_not_encrypt(encrypting, relay):
    relay.fault = lambda request: (
        Fault(501, "NotImplemented") if HEADER in request.headers else None
    )
    with pytest.raises(
        UserError, match=r"does not encrypt with AES256 \(NotImplemented\): correct"
    ):
        encrypting(encryption="AES256").check()


def test_a_key_goes_with_kms_alone():
    wanted = {"store.kms_key": "alias/elder"}
    with pytest.raises(UserError, match=r"store\.kms_key.*only with store\.encryption"):
        load_params(None, None, wanted)
    with pytest.raises(UserError, match=r"store\.encryption"):
        load_params(None, None, {"store.encryption": "rot13"})
    settings = load_params(None, None, wanted | {"store.encryption": "aws:kms"})
    assert settings.store.kms_key == "alias/elder"
