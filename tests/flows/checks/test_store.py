"""What `elder doctor` and the check before a run say of a store, asked for real through a relay that can fail."""

import os
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from elder.errors import UserError
from elder.params import Params
from elder.settings import load_params
from flows.checks import doctor, services
from tasks import retry
from tests.tasks.store.faulty import Fault, Faulty, Request

BUCKET = "checked"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def relay(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    boto3.client("s3", endpoint_url=s3, region_name="us-east-1").create_bucket(
        Bucket=BUCKET
    )
    made = Faulty(s3)
    yield made
    made.close()


def settings(relay: Faulty, **values: str) -> Params:
    here = {
        "store.url": f"s3://{BUCKET}/x",
        "store.endpoint": relay.url,
        "store.region": "us-east-1",
    }
    more = {key.replace("__", "."): value for key, value in values.items()}
    return load_params(None, None, here | more)


def ignores(request: Request) -> None:
    """Be a server that does not know the header, and overwrites."""
    request.headers.pop("If-None-Match", None)


def test_a_store_without_conditional_writes_is_named_before_any_work(
    relay, tmp_path, monkeypatch
):
    checks = tuple(check for check in doctor.CHECKS if check.name == "store")
    monkeypatch.setattr(doctor, "CHECKS", checks)
    (well,) = doctor.examine(settings(relay), tmp_path)
    assert well == {"name": "store", "ok": True, "detail": f"s3://{BUCKET}/x"}
    relay.fault = ignores
    (ill,) = doctor.examine(settings(relay), tmp_path)
    assert not ill["ok"]
    assert "has no conditional writes (If-None-Match is ignored)" in str(ill["detail"])
    with pytest.raises(UserError, match="has no conditional writes"):
        doctor.require(settings(relay), tmp_path)


def test_a_store_of_models_alone_needs_none(relay, tmp_path):
    """Decisions lie elsewhere: what is stored here is named by its own digest."""
    relay.fault = ignores
    elsewhere = settings(relay, store__history=str(tmp_path / "decisions"))
    assert services.store(elsewhere, tmp_path) == f"s3://{BUCKET}/x"
    relay.fault = lambda request: (
        Fault(403, "AccessDenied") if request.method == "PUT" else None
    )
    with pytest.raises(UserError, match="access denied"):
        services.store(elsewhere, tmp_path)


def test_decisions_elsewhere_must_be_readable(relay, tmp_path):
    relay.fault = lambda request: (
        Fault(403, "AccessDenied") if "decisions" in request.path else None
    )
    elsewhere = settings(relay, store__history="s3://decisions/x")
    with pytest.raises(UserError, match="s3://decisions/x: access denied"):
        services.store(elsewhere, tmp_path)


def test_a_check_does_not_wait_for_minutes(relay, tmp_path, monkeypatch):
    monkeypatch.setenv("ELDER_PATIENCE", "3600")
    monkeypatch.setattr(retry, "CHECKING", 0.1)
    relay.fault = lambda _: Fault(503, "SlowDown")
    with pytest.raises(UserError, match=r"overloaded or ill \(SlowDown\).*0 seconds$"):
        services.store(settings(relay), tmp_path)
