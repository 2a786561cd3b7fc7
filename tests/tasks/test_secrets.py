"""A secret reaches no message, no record, no registry and no log, whatever is wrong with what was given."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.errors import UserError
from elder.record import Record
from elder.report.card import model_card
from elder.report.html import write_report
from elder.settings import read_params, validate
from flows.checks import services
from flows.environment import prepare_environment
from tasks.record_file import record_text
from tasks.registry.metrics import params_of, tags_of
from tests.elder.records import make_record

SECRET = "Zq7/t4il#9?x'y"
PIECES = ("Zq7", "t4il", "9?x")
ADDRESS = f"postgresql://me:{SECRET}@db/x"


def leaks(text: str) -> bool:
    return any(piece in text for piece in PIECES)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (f"registry={ADDRESS}", "--set 'registry' is not of the form"),
        (f"{ADDRESS}", "a word of --set is not of the form"),
        (f"registry.{ADDRESS}", "a word of --set is not of the form"),
        (f"store.url={{a: '{SECRET[:5]}'}}", "store.url: should be a valid string"),
        ("registry.name=Zq7/t4il", "registry.name: use letters"),
        ("notify.events=[Zq7t4il]", "notify.events: should be 'success'"),
        ("notify=[Zq7t4il]", "--set 'notify' is not of the form"),
        ("notify.webhook=[Zq7t4il]", "notify.webhook holds what may be a password"),
        ("notify.webhook=https://ops/Zq7t4il", "notify.webhook holds what may be"),
        (f"registry.tracking_uri={ADDRESS}", "registry.tracking_uri holds what may"),
        ("store.endpoint=https://h?sig=Zq7t4il", "store.endpoint holds what may be"),
        ("signing.keyless=Zq7t4il", "signing.keyless: should be a valid boolean"),
        ("store.url.a=Zq7t4il", "section 'store.url' must hold keys"),
        ("model.dtype=https://me:Zq7t4il@h", "model.dtype holds what may be"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named_without_its_value(
    tmp_path: Path, given: str, named: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("store: {url: a}\n")
    with pytest.raises(UserError) as caught:
        read_params(path, [given], {})
    assert named in str(caught.value)
    assert not leaks(str(caught.value))


@pytest.mark.parametrize(
    "given",
    [
        "registry.tracking_uri=postgresql://me:a Zq7t4il@db/x",
        "Zq7t4il",
        "Zq7t4il=@db",
        "registry.tracking_uri Zq7t4il",
        "notify.events=Zq7t4il",
    ],
)
def test_what_is_wrong_in_the_environment_is_named_without_its_value(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELDER_SET", given)
    with pytest.raises(UserError) as caught:
        read_params(None, None, {})
    assert not leaks(str(caught.value))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f'registry: {{tracking_uri: "{ADDRESS}\\q"}}', "unknown escape character"),
        (f"registry:\n  tracking_uri: *{SECRET}", "is not valid YAML"),
        ("store: Zq7t4il", "store: should hold keys and values"),
        ("notify: {webhook: [Zq7t4il]}", "notify.webhook: should be a valid string"),
        ("registry: {tracking_uri: {a: Zq7t4il}}", "registry.tracking_uri: should be"),
        ("model: {name: {a: 'https://me:Zq7t4il@h'}}", "model.name = {'a': 'https://h"),
        ("registry: {'x://me:Zq7t4il@h': 1}", "unknown key"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_without_its_value(
    tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_params(path, None, {})
    assert named in str(caught.value)
    assert not leaks(str(caught.value))


@pytest.mark.parametrize(
    ("section", "given", "named"),
    [
        ("registry", {"tracking_uri": "me:Zq7t4il@db"}, "registry.tracking_uri: name"),
        ("registry", {"tracking_uri": "Zq7t4il"}, "registry.tracking_uri: name"),
        ("registry", {"tracking_uri": "postgresql:Zq7t4il"}, "registry.tracking_uri"),
        ("registry", {"tracking_uri": "postgresql+no://a:Zq7t4il@h/x"}, "driver"),
        ("registry", {"tracking_uri": f"postgresql+psycopg://a:{SECRET}@127.0.0.1:9/x"}, "cannot be reached"),
        ("store", {"url": "gs://me:Zq7t4il@bucket"}, "store.url: name a local folder"),
        ("store", {"url": "https:/me:Zq7t4il@host"}, "store.url: name a local folder"),
        ("store", {"url": "s3://me:Zq7t4il@bucket/x"}, "store url: name s3://"),
        ("store", {"url": "s3://bucket/x", "endpoint": f"http://a:{SECRET}@h"}, "store endpoint: name it"),
        ("store", {"url": "s3://bucket/x", "endpoint": "http://a:12/Zq7t4il@h"}, "store endpoint: name it"),
    ],
)  # fmt: skip
def test_services_that_cannot_be_used_are_named_without_their_secrets(
    tmp_path: Path, section: str, given: dict[str, Any], named: str
) -> None:
    settings = validate({section: given})
    with pytest.raises(UserError) as caught:
        getattr(services, section)(settings, tmp_path)
    assert named in str(caught.value)
    assert not leaks(str(caught.value))


@pytest.mark.parametrize(
    "url", ["me:Zq7t4il@h", "http://me:Zq7/t4il#@h/api", "Zq7t4il"]
)
def test_the_address_of_prefect_is_not_repeated(url: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: url}):
        for check in (services.prefect_server, services.worker):
            with pytest.raises(UserError, match="PREFECT_API_URL is no") as caught:
                check(validate({}), Path())
            assert not leaks(str(caught.value))


def secret_record() -> Record:
    params = {
        "registry": {"tracking_uri": ADDRESS},
        "store": {"url": "s3://b/x", "endpoint": "https://h/x?sig=Zq7t4il"},
        "notify": {"webhook": "https://hooks.slack.com/services/Zq7t4il"},
        "model": {"name": "https://me:Zq7t4il@hub/x"},
    }
    tree = make_record()
    tree["lineage"] = tree["lineage"] | {"params": params}
    return Record.model_validate(tree)


def test_all_that_is_made_of_a_record_is_without_secrets(tmp_path: Path) -> None:
    text = record_text(secret_record())
    params = json.loads(text)["lineage"]["params"]
    assert params == {
        "registry": {"tracking_uri": "postgresql://db/x"},
        "store": {"url": "s3://b/x", "endpoint": "https://h/x"},
        "notify": {"webhook": "https://hooks.slack.com/***"},
        "model": {"name": "https://hub/x"},
    }
    assert not leaks(json.dumps(params_of(secret_record())))
    assert not leaks(json.dumps(tags_of(secret_record())))
    written = Record.model_validate(json.loads(text))
    write_report(written, tmp_path / "report.html")
    assert not leaks((tmp_path / "report.html").read_text())
    assert not leaks(model_card(written))


def test_parameters_are_written_down_without_secrets() -> None:
    settings = validate(
        {
            "registry": {"tracking_uri": f"postgresql://me:{SECRET[:6]}@db:5432/x?a=b"},
            "store": {"url": "s3://b/x", "endpoint": "https://Zq7t4il@h/x?sig=Zq7t4il"},
            "notify": {"webhook": "https://hooks.slack.com/services/Zq7t4il"},
        }
    )
    tree = settings.model_dump(mode="json")
    assert tree["registry"]["tracking_uri"] == "postgresql://db:5432/x"
    assert tree["store"]["endpoint"] == "https://h/x"
    assert not leaks(yaml.safe_dump(tree))
    assert "Zq7/t4@db" in settings.registry.tracking_uri


def test_lines_of_logs_are_without_secrets(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    prepare_environment()
    log = logging.getLogger("prefect.of.a.test")
    with caplog.at_level("DEBUG"):
        log.info("HTTP Request: POST %s %d %.1f", ADDRESS, 3, 0.5)
        log.info("at https://h/x?sig=Zq7t4il")
        log.info("%(a)s", {"a": "https://h/x?sig=Zq7t4il"})
        try:
            raise ValueError(f"Could not parse {ADDRESS}")
        except ValueError:
            log.exception("it failed")
    assert "postgresql://db/x 3 0.5" in caplog.text
    assert "ValueError: Could not parse postgresql://db/x" in caplog.text
    assert not leaks(caplog.text)


CRASH = """
import sys
from elder.cli.app import build_app
from elder.cli.services import LIBRARY
app = build_app(LIBRARY)
secret = sys.stdin.read()
@app.command()
def crash():
    try:
        raise ValueError(secret)
    except ValueError as error:
        raise RuntimeError("it failed") from error
sys.argv[1:] = ["crash"]
app()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "a", "b", ADDRESS],
        ["bench", "a", "b", f"--{ADDRESS}"],
        ["bench", "a", "b", "--iterations", ADDRESS],
        [ADDRESS],
        ["bench", "a", "b", "--set", f"registry={ADDRESS}"],
        ["bench", "a", "b", "--set", f"registry.tracking_uri={ADDRESS}"],
    ],
)
def test_a_wrong_command_line_is_refused_without_secrets(arguments: list[str]) -> None:
    told = CliRunner().invoke(build_app(LIBRARY), arguments)
    assert told.exit_code == 2
    assert told.output
    assert not leaks(told.output)


def test_the_trace_of_a_crash_is_without_secrets() -> None:
    said = f"cannot use {ADDRESS}\nhost=h password='Zq7 t4il'"
    done = subprocess.run(
        [sys.executable, "-c", CRASH],
        input=said,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "ValueError: cannot use postgresql://db/x" in done.stderr
    assert "RuntimeError: it failed" in done.stderr
    assert not leaks(done.stderr + done.stdout)
