"""No secret in an address, a text or a tree of values, whatever characters it holds."""

import time
from typing import Any

import pytest

from elder.errors import Crash, UserError
from elder.progress import say
from elder.secrecy import (
    hide_given_secrets,
    hide_secrets,
    shown_address,
    without_secrets,
)
from elder.settings import validate

PARTS = ("Zq7", "tail9")  # of a password, around the character that is tried
CHARACTERS = ["/", "#", "?", "'", '"', "@", ":", "%2F", "%40", "//", "?x=", "#@/", "&"]


def leaks(text: str) -> bool:
    return any(part in text for part in PARTS)


@pytest.mark.parametrize("between", CHARACTERS)
@pytest.mark.parametrize("first", ["", "12", "/"])
@pytest.mark.parametrize(
    "form",
    [
        "postgresql://me:{}@db:5432/x",
        "mysql+pymysql://me:{}@db/x",
        "https://me:{}@host/path",
        "https://{}@host/path",
        "postgresql:///x?user=me&password={}",
        "postgresql://db/x?password={}",
        "postgresql://me:{}@db/x?sslmode=require",
    ],
)
def test_a_password_of_any_characters_stays_out(
    form: str, first: str, between: str
) -> None:
    address = form.format(first + between.join(PARTS))
    shown = shown_address(address)
    assert not leaks(shown)
    assert shown_address(shown) == shown
    text = hide_secrets(f"cannot reach '{address}': try again")
    assert not leaks(text)
    assert text.startswith("cannot reach '")
    assert text.endswith(" try again")
    assert without_secrets({"a": [address]}) == {"a": [shown]}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:pw@db:5432/x", "postgresql://db:5432/x"),
        ("postgresql://me:p/w@db/x", "postgresql://db/x"),
        ("postgresql://me:p w@db/x", "postgresql://db/x"),
        ("postgresql://me:p?w@db/x", "postgresql://db/x"),
        ("postgresql://db/x?password=p@w", "postgresql://***"),
        ("https://h/x?sig=abc&pwd=q#f", "https://h/x"),
        ("https://s3.example:9000/b/k?X-Amz-Signature=abc", "https://s3.example:9000/b/k"),
        ("https://hooks.slack.com/services/T0/B0/XXX", "https://hooks.slack.com/***"),
        ("https://a.webhook.office.com/webhookb2/1", "https://a.webhook.office.com/***"),
        ("https://prod.logic.azure.com/workflows/1?sig=x", "https://prod.logic.azure.com/***"),
        ("http://me:pw@[::1]:5000/x", "http://[::1]:5000/x"),
        ("https:///me:pw", "https://***"),
        ("https:/me:pw@h", "https://***"),
        ("me:pw@host/db", "***"),
    ],
)  # fmt: skip
def test_what_is_left_of_an_address(address: str, shown: str) -> None:
    assert shown_address(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        "store",
        "models/tiny",
        "models:/tiny@champion",
        "owner/name@main",
        "s3://bucket/a/prefix",
        "sqlite:///mlflow.db",
        "sqlite:////home/me@work/mlflow.db",
        "http://127.0.0.1:4200/api",
        "name it as http://host:port or https://host, with no credentials in it;",
        "name sqlite:///FILE, a database (postgresql://...) or the http(s):// address",
        "the database does not accept this user and password; correct them",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "recover.distil.next_token = 7: should be less",
        "signing.private_key: there is no such file",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(address: str) -> None:
    assert shown_address(address) == address
    assert hide_secrets(address) == address


@pytest.mark.parametrize(
    "text",
    [
        "host=db user=me password=Zq7tail9 dbname=x",
        r"host=db password = 'Zq7 \' tail9' dbname=x",
        "Driver={x};PWD={Zq7;tail9};Server=h",
        "PREFECT_API_AUTH_STRING=elder:Zq7tail9",
        "export AWS_SECRET_ACCESS_KEY='Zq7tail9'",
        "Max retries exceeded with url: /api?sig=Zq7tail9&x=1 (Caused by",
        "GET /hook?code=Zq7tail9",
        "Authorization: Basic Zq7tail9==",
        "{'Authorization': 'Bearer Zq7tail9', 'a': 1}",
        '{"password": "Zq7\\"tail9"}',
        "sent Bearer Zq7tail9 there",
        "token hf_Zq7tail9AAAAAAAAAAAAAAAAAAAA",
        "-----BEGIN PRIVATE KEY-----\nZq7tail9\n-----END PRIVATE KEY-----",
    ],
)
def test_secrets_in_texts(text: str) -> None:
    shown = hide_secrets(text)
    assert not leaks(shown)
    assert hide_secrets(shown) == shown


def test_a_tree_without_secrets_is_otherwise_the_same() -> None:
    tree: dict[str, Any] = {
        "n": [1, None, 0.5, True],
        "s": "s3://b/x",
        "t": "two words",
    }
    hidden = {"registry": {"tracking_uri": "postgresql://me:Zq7tail9@db/x"}}
    assert without_secrets(tree | hidden) == tree | {
        "registry": {"tracking_uri": "postgresql://db/x"}
    }


def test_what_is_hidden_in_a_tree_depends_on_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An audit on another machine must find the same."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "postgres")
    assert without_secrets("models/postgres") == "models/postgres"


def test_secrets_of_this_process_are_hidden_wherever_a_library_repeats_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "elder:Zq7tail9A")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "Zq7tail9B")
    monkeypatch.setenv("ELDER_WEBHOOK", "https://ops.example/Zq7tail9C")
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "db://u:Zq7tail9D@h")
    validate({"registry": {"tracking_uri": "postgresql://me:Zq7%2Ftail9E@db/x"}})
    validate({"notify": {"webhook": "https://ops.example/x?key=Zq7tail9F"}})
    text = "A Zq7tail9A B Zq7tail9B C /Zq7tail9C D Zq7tail9D E Zq7/tail9E F Zq7tail9F"
    hidden = "A *** B *** C /*** D *** E *** F ***"
    assert hide_given_secrets(text) == hidden
    assert str(UserError(text)) == hidden
    assert repr(Crash(text)) == f"Crash('{hidden}')"
    say(text)
    assert capsys.readouterr().err == f"{hidden}\n"


@pytest.mark.parametrize(
    "piece", ["a", "a.", "password", "password = '", "http://a@", "a:/", "'", " ", "eyJ."]
)  # fmt: skip
def test_a_text_of_any_length_takes_no_time(piece: str) -> None:
    started = time.process_time()
    hide_secrets(piece * (200_000 // len(piece)))
    assert time.process_time() - started < 5
