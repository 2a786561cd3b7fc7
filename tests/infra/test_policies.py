"""The policies for AWS: what each role may by them, and decisions that nobody rewrites."""

import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.core import set_initial_no_auth_action_count
from moto.server import ThreadedMotoServer

from elder.errors import UserError
from infra import buckets
from tasks.store.open import open_store
from tasks.store.s3 import S3Store
from tests.infra.people import denied

POLICIES = Path(__file__).parents[2] / "infra" / "policies"
ENTRY = {"Bucket": "elder-history", "Key": "history/m/000001.json"}
MODEL = {"Bucket": "elder", "Key": "store/models/m/record.json"}
NEW = {"IfNoneMatch": "*", "Body": b"{}"}


def policy(name: str) -> dict[str, Any]:
    return json.loads((POLICIES / f"{name}.json").read_text())


def without_conditions(tree: dict[str, Any]) -> str:
    """Return a policy as moto can hold it, which knows no conditions on S3."""
    for statement in tree["Statement"]:
        statement.pop("Condition", None)
    return json.dumps(tree)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def clients() -> dict[str, Any]:
    """Make the buckets and a user with a key and the policy of each role; returns a client of each."""
    admin, iam = boto3.client("s3"), boto3.client("iam")
    for bucket in buckets.BUCKETS:
        admin.create_bucket(Bucket=bucket)
    for place in (ENTRY, MODEL):
        admin.put_object(**place, Body=b"{}")
    made = {}
    for role in ("worker", "promoter", "auditor"):
        iam.create_user(UserName=role)
        document = json.dumps(policy(role))
        iam.create_policy(PolicyName=role, PolicyDocument=document)  # it is well formed
        iam.put_user_policy(
            UserName=role,
            PolicyName=f"{role}-here",
            PolicyDocument=without_conditions(policy(role)),
        )
        key = iam.create_access_key(UserName=role)["AccessKey"]
        made[role] = boto3.client(
            "s3",
            aws_access_key_id=key["AccessKeyId"],
            aws_secret_access_key=key["SecretAccessKey"],
        )
    return made


@mock_aws
def test_what_each_role_may(keys: None) -> None:
    made = clients()
    acts = {
        "read models": ("get_object", MODEL),
        "write models": ("put_object", MODEL | {"Body": b"{}"}),
        "delete models": ("delete_object", MODEL),
        "read decisions": ("get_object", ENTRY),
        "list decisions": ("list_objects_v2", {"Bucket": "elder-history"}),
        "add decisions": ("put_object", ENTRY | NEW | {"Key": "history/m/000002.json"}),
        "delete decisions": ("delete_object", ENTRY),
        "read artifacts": ("list_objects_v2", {"Bucket": "elder-mlflow"}),
        "make buckets": ("create_bucket", {"Bucket": "another"}),
    }
    reads = {"read models", "read decisions", "list decisions"}

    @set_initial_no_auth_action_count(0)
    def looked_at() -> dict[str, set[str]]:
        return {
            role: {
                what
                for what, (act, named) in acts.items()
                if not denied(getattr(client, act), **named)
            }
            for role, client in made.items()
        }

    assert looked_at() == {
        "worker": reads | {"write models"},
        "promoter": reads | {"add decisions"},
        "auditor": reads,
    }


def test_a_promoter_adds_and_never_replaces() -> None:
    """AWS holds these conditions, moto does not."""
    adds = [
        statement
        for statement in policy("promoter")["Statement"]
        if "s3:PutObject" in statement["Action"] and statement["Effect"] == "Allow"
    ]
    only_new = {"Null": {"s3:if-none-match": "false"}}
    assert [statement["Condition"] for statement in adds] == [only_new]
    for_all = {one["Sid"]: one for one in policy("history-bucket")["Statement"]}
    assert for_all["AddAndNeverReplace"]["Condition"] == {
        "Null": {"s3:if-none-match": "true"}
    }
    assert {one["Principal"] for one in for_all.values()} == {"*"}
    assert {one["Effect"] for one in for_all.values()} == {"Deny"}


def test_compose_has_the_same_identities_as_the_file_for_seaweedfs() -> None:
    compose = (POLICIES.parent / "compose.yaml").read_text()
    start = compose.index('{"identities"')
    written = compose[start : compose.index("\n\nvolumes:")]
    told = json.loads(written.replace(":?run infra/env.sh first", ""))
    assert told == policy("seaweedfs")


@pytest.fixture
def endpoint(keys: None) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    httpx.post(
        f"{address}/moto-api/reset"
    )  # servers of one process share what they hold
    yield address
    server.stop()


def test_decisions_are_under_object_lock_where_the_server_has_it(endpoint: str) -> None:
    buckets.main(endpoint)
    store = open_store("s3://elder-history", endpoint, "us-east-1")
    assert store.create("history/m/000001.json", b"first")
    assert not store.create("history/m/000001.json", b"second")
    client = boto3.client("s3", endpoint_url=endpoint)
    client.put_object(**ENTRY, Body=b"other")
    client.delete_object(**ENTRY)
    versions = client.list_object_versions(Bucket=ENTRY["Bucket"], Prefix=ENTRY["Key"])
    oldest = versions["Versions"][-1]["VersionId"]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(**ENTRY, VersionId=oldest)
    assert client.get_object(**ENTRY, VersionId=oldest)["Body"].read() == b"first"
    assert store.how_kept("history") == (
        "these credentials can have it replaced and deleted; object lock keeps each version for 3650 days"
    )
    buckets.main(endpoint)  # a second time nothing changes


def test_how_decisions_are_kept_without_a_lock(endpoint: str) -> None:
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="elder-history")
    store = open_store("s3://elder-history", endpoint, "us-east-1")
    assert "nothing of it stays (no object lock" in store.how_kept("history")
    assert buckets.keep_all(client, "elder-history") == "older versions"
    assert "it stays as an older version" in store.how_kept("history")


def no(operation: str, unless: str | None = None) -> Any:
    """Return what answers for a server whose policy refuses an operation, unless a header is there."""

    def refuse(request: Any, **_: Any) -> AWSResponse | None:
        if unless is not None and unless in request.headers:
            return None
        body = BytesIO(b"<Error><Code>AccessDenied</Code></Error>")
        body.stream = lambda **_: [body.read()]  # type: ignore[attr-defined]
        return AWSResponse(request.url, 403, {}, body)

    return f"before-send.s3.{operation}", refuse


def test_where_nothing_can_be_replaced_decisions_are_added(endpoint: str) -> None:
    """As the policies for AWS have it."""
    buckets.main(endpoint)
    store = open_store("s3://elder-history", endpoint, "us-east-1")
    assert isinstance(store, S3Store)
    for handler in (no("PutObject", unless="If-None-Match"), no("DeleteObject")):
        store.client.meta.events.register(*handler)
    assert store.create("history/m/000001.json", b"first")
    assert not store.create("history/m/000001.json", b"second")
    kept = "these credentials can add to it, and neither replace nor delete what lies there"
    assert [store.how_kept("history") for _ in range(2)] == [kept, kept]
    store.client.meta.events.register(*no("PutObject"))
    assert store.how_kept("history") == "these credentials cannot write there"
    with pytest.raises(UserError, match="access denied"):
        store.create("history/m/000002.json", b"first")
