"""Worker, promoter and auditor on the real servers: what each may, and what it is refused, by whom and in which words.

The tests of this file run in order: each goes on from what those before it left.
"""

from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from elder.errors import UserError
from tasks.registry.client import Registry
from tasks.store.models import fetch
from tests.infra.people import NAME, Person, denied
from tests.tasks.registered import record, register

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ENTRY = f"history/{NAME}/000001.json"
BUCKETS = ("elder", "elder-history", "elder-mlflow")


@pytest.fixture(scope="module")
def people(
    services: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    roles = ("worker", "promoter", "auditor", "admin")
    folder = tmp_path_factory.mktemp("people")
    return SimpleNamespace(**{role: Person(services, role, folder) for role in roles})


@pytest.fixture(scope="module")
def registered(people: SimpleNamespace, services: SimpleNamespace) -> None:
    """Have the worker register two versions of a model that was not there."""
    with people.worker.acting() as settings:
        for number, perplexity in ((1, 20.0), (2, 19.0)):
            folder = people.worker.folder / f"model {number}"
            version, _ = register(settings, folder, record(perplexity, name=NAME))
            registry = Registry(settings.registry)
            registry.client.set_registered_model_alias(NAME, "challenger", version)


def entries(services: SimpleNamespace) -> dict[str, bytes]:
    """Return all that lies in the bucket of decisions, as the admin reads it."""
    client = services.s3()
    listed = client.list_objects_v2(Bucket="elder-history").get("Contents", [])
    return {
        item["Key"]: client.get_object(Bucket="elder-history", Key=item["Key"])[
            "Body"
        ].read()
        for item in listed
    }


def test_a_worker_cannot_promote(
    people: SimpleNamespace, services: SimpleNamespace, registered: None
) -> None:
    refused = people.worker.decide("promote", NAME, "1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is not trusted with decisions on models by" in refused.stderr
    assert entries(services) == {}


def test_a_worker_that_trusts_itself_does_not_reach_the_history(
    people: SimpleNamespace, services: SimpleNamespace, registered: None
) -> None:
    """Whoever has taken over the worker's machine edits the file of trusted keys there."""
    own = people.worker.folder / "own.yaml"
    listed = (services.folder / "trusted.yaml").read_text()
    own.write_text(listed.replace("- model\n", "- model\n  - decision\n"))
    refused = people.worker.decide("promote", NAME, "1", **{"signing.trusted": own})
    assert refused.returncode == 2
    assert "s3://elder-history: access denied" in refused.stderr
    assert entries(services) == {}


def test_a_promoter_promotes_under_the_name_of_its_account(
    people: SimpleNamespace, registered: None
) -> None:
    done = people.promoter.decide("promote", NAME, "1")
    assert (done.returncode, done.stderr) == (0, "")
    told = people.auditor.history()
    assert told["faults"] == []
    assert (told["version"], told["by"]) == ("1", "promoter")
    assert told["entries"][0]["vouched_by"] == "MLflow account"
    assert told["entries"][0]["signed_by"] == "promoter"
    assert people.worker.history() == told


def test_nobody_but_the_admin_takes_a_decision_back(
    people: SimpleNamespace, services: SimpleNamespace
) -> None:
    before = entries(services)
    assert list(before) == [ENTRY]
    place = {"Bucket": "elder-history", "Key": ENTRY}
    kept = people.promoter.elder("doctor", "--json").stdout
    assert "these credentials can have it replaced and deleted; it stays as an" in kept
    copied = {"CopySource": place, "MetadataDirective": "REPLACE"}
    for person in (people.worker, people.auditor):
        client = person.s3()
        assert client.get_object(**place)["Body"].read() == before[ENTRY]
        new = place | {"Key": "new"}
        acts = [
            denied(client.put_object, **place, Body=b"other"),
            denied(client.put_object, **new, Body=b"other"),
            denied(client.put_object, **new, Body=b"other", IfNoneMatch="*"),
            denied(client.delete_object, **place),
            denied(client.copy_object, **place, **copied),
            denied(client.create_multipart_upload, **place),
            denied(client.put_bucket_acl, Bucket=place["Bucket"], ACL="public-read"),
            denied(
                client.put_bucket_versioning,
                Bucket=place["Bucket"],
                VersioningConfiguration={"Status": "Suspended"},
            ),
        ]
        assert acts == [True] * len(acts)
        several = {"Objects": [{"Key": ENTRY}]}
        answer = client.delete_objects(Bucket="elder-history", Delete=several)
        assert [error["Code"] for error in answer["Errors"]] == ["AccessDenied"]
    assert entries(services) == before

    # Swift knows no right to add alone: what a promoter overwrites stays as an older version, which is the admin's
    client, admin = people.promoter.s3(), services.s3()
    client.put_object(**place, Body=b"other")
    client.delete_object(**place)
    told = people.auditor.history()
    assert "is missing" in " ".join(told["faults"]) or "was cut" in " ".join(
        told["faults"]
    )
    versions = admin.list_object_versions(Bucket="elder-history", Prefix=ENTRY)
    oldest = versions["Versions"][-1]["VersionId"]
    assert denied(client.delete_object, **place, VersionId=oldest)
    kept = admin.get_object(**place, VersionId=oldest)["Body"].read()
    assert kept == before[ENTRY]
    admin.put_object(**place, Body=kept)
    assert people.auditor.history()["faults"] == []


def test_what_each_may_in_the_other_buckets(
    people: SimpleNamespace, services: SimpleNamespace
) -> None:
    may = {}
    for role in ("worker", "promoter", "auditor"):
        client = getattr(people, role).s3()
        may[role] = [
            not denied(client.put_object, Bucket=bucket, Key="x", Body=b"x")
            for bucket in BUCKETS
        ]
        client.list_objects_v2(Bucket="elder")
        assert denied(client.list_objects_v2, Bucket="elder-mlflow")
        assert denied(client.create_bucket, Bucket=f"own-{role}")
        assert denied(client.list_buckets)
    services.s3().delete_object(Bucket="elder-history", Key="x")
    assert may == {
        "worker": [True, False, False],
        "promoter": [False, True, False],
        "auditor": [False, False, False],
    }


def test_what_each_may_in_the_registry(
    people: SimpleNamespace, registered: None
) -> None:
    """To MLflow, adding a version and moving an alias are one right."""
    acts: dict[str, tuple[str, ...]] = {
        "make a model": ("create_registered_model", f"{NAME}-other"),
        "make a version": ("create_model_version", NAME, "s3://elder/x"),
        "move an alias": ("set_registered_model_alias", NAME, "a", "1"),
        "tag a version": ("set_model_version_tag", NAME, "1", "a", "b"),
        "untag it": ("delete_model_version_tag", NAME, "1", "a"),
        "delete a version": ("delete_model_version", NAME, "3"),
        "delete the model": ("delete_registered_model", NAME),
    }
    may: dict[str, list[str]] = {}
    for role in ("worker", "promoter", "auditor"):
        with getattr(people, role).acting() as settings:
            client = Registry(settings.registry).client
            assert client.get_model_version(NAME, "1").tags["digest"]
            may[role] = [
                what
                for what, (act, *named) in acts.items()
                if not denied(getattr(client, act), *named)
            ]
    assert may == {
        "worker": ["make a model", "make a version", "move an alias", "tag a version"],
        "promoter": [
            "make a version",
            "move an alias",
            "tag a version",
            "untag it",
            "delete a version",
        ],
        "auditor": [],
    }


def test_a_champion_that_the_worker_made_is_believed_by_nobody(
    people: SimpleNamespace, registered: None
) -> None:
    with people.worker.acting() as settings:
        client = Registry(settings.registry).client
        client.set_registered_model_alias(NAME, "champion", "2")
    said = "alias champion of roles is at version 2, by the signed history champion is version 1"
    assert said in " ".join(people.auditor.history()["faults"])
    for person, *command in (
        (people.promoter, "promote", NAME, "2"),
        (people.promoter, "rollback", NAME),
    ):
        refused = person.decide(*command)
        assert (refused.returncode, said in refused.stderr) == (1, True)
    with people.auditor.acting() as settings, pytest.raises(UserError, match=said):
        fetch(f"models:/{NAME}@champion", settings)
    with people.promoter.acting():
        client.set_registered_model_alias(NAME, "champion", "1")
    assert people.auditor.history()["faults"] == []


def test_a_decision_that_the_worker_tells_is_believed_by_nobody(
    people: SimpleNamespace, registered: None
) -> None:
    with people.worker.acting() as settings:
        client = Registry(settings.registry).client
        client.set_registered_model_tag(NAME, "history/000002", "promote to version 2")
    assert "it was cut" in " ".join(people.auditor.history()["faults"])
    assert people.promoter.decide("promote", NAME, "2").returncode == 1
    with people.promoter.acting():
        client.delete_registered_model_tag(NAME, "history/000002")
    done = people.promoter.decide("promote", NAME, "2")
    assert (done.returncode, people.auditor.history()["version"]) == (0, "2")
    assert people.promoter.decide("rollback", NAME).returncode == 0


@pytest.mark.parametrize("role", ["worker", "promoter", "auditor"])
def test_a_model_that_is_not_there_is_none_and_not_forbidden(
    people: SimpleNamespace, role: str
) -> None:
    """Where MLflow parts who may make models, it denies everybody but its admin what is not there."""
    told = getattr(people, role).elder("history", "absent")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == "absent: nothing was ever promoted\n"


def test_an_auditor_decides_nothing(people: SimpleNamespace, registered: None) -> None:
    refused = people.auditor.decide("promote", NAME, "2")
    assert refused.returncode == 2
    assert "signing.private_key is null, so nothing can be signed" in refused.stderr


def test_each_has_the_key_of_its_role_and_none_has_prefect_but_the_worker(
    people: SimpleNamespace, services: SimpleNamespace
) -> None:
    keys = services.folder / ".native" / "keys"
    assert sorted(path.name for path in keys.iterdir()) == ["promoter", "worker"]
    for role in ("worker", "promoter"):
        assert (keys / role).stat().st_mode & 0o777 == 0o700
        assert (keys / role / "signing.pem").stat().st_mode & 0o777 == 0o600
        assert f"={keys}/{role}/signing.pem" in getattr(people, role).env["ELDER_SET"]
    for role in ("promoter", "auditor"):
        told = services.native("env", role).stdout
        assert "unset PREFECT_API_URL PREFECT_API_AUTH_STRING\n" in told
        assert services.values["PREFECT_API_AUTH_STRING"] not in told
    wrong = services.native("env", "boss")
    assert wrong.returncode == 2
    assert "give one of worker, promoter, auditor and admin" in wrong.stderr


# what a process needs of infra/.env; all else there is not in its environment
NEEDS = {
    "worker": {
        "PREFECT_API_AUTH_STRING",
        "MLFLOW_WORKER_PASSWORD",
        "S3_WORKER_KEY",
    },
    "mlflow": {
        "MLFLOW_DB_PASSWORD",
        "MLFLOW_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "S3_MLFLOW_KEY",
    },
    "prefect": {"PREFECT_DB_PASSWORD", "PREFECT_API_AUTH_STRING"},
    "s3": set(),
    "s3-account": set(),
    "s3-container": set(),
    "s3-object": set(),
}


def test_no_process_has_a_secret_that_is_not_its_own(services: SimpleNamespace) -> None:
    secrets = {
        name: value.rpartition(":")[2]
        for name, value in services.values.items()
        if len(value) > 40
    }
    assert len(secrets) == 15
    has = {}
    for path in (services.folder / ".native").glob("*.pid"):
        process = Path("/proc", path.read_text().split()[0])
        content = (process / "environ").read_text()
        has[path.stem] = {name for name, value in secrets.items() if value in content}
    assert has == NEEDS


def test_each_service_has_a_database_of_its_own(services: SimpleNamespace) -> None:
    def connect(user: str, database: str) -> psycopg.Connection:
        password = services.values[f"{user.upper()}_DB_PASSWORD"]
        return psycopg.connect(
            host="127.0.0.1",
            port=services.values["POSTGRES_PORT"],
            user=user,
            dbname=database,
            password=password,
        )

    own = {
        "prefect": {"prefect"},
        "mlflow": {"mlflow", "mlflow_auth"},
        "auditor": {"mlflow"},
    }
    for user, databases in own.items():
        for database in ("prefect", "mlflow", "mlflow_auth", "postgres", "template1"):
            if database in databases:
                with connect(user, database) as connection:
                    told = connection.execute("show is_superuser").fetchone()
                assert told == ("off",)
            else:
                with pytest.raises(psycopg.OperationalError, match="permission denied"):
                    connect(user, database)
    with connect("auditor", "mlflow") as connection:
        connection.execute("select name from registered_models").fetchall()
        connection.commit()
        connection.execute("set default_transaction_read_only = off")
        connection.commit()
        for change in ("delete from registered_models", "create table x (y int)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(change)
            connection.rollback()
