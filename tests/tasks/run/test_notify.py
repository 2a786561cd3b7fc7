"""What a webhook is told, when it is tried again, and that its address is told to nobody."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tenacity import wait_none

from elder.errors import UserError
from elder.params import Notify, Params
from elder.settings import load_params
from tasks.run import notify

SECRET = "T0KEN"
MESSAGE = {"run_id": "r1", "version": "3"}


class Receiver(HTTPServer):
    """Answers with the given statuses, then with 204, and keeps what it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.got: list[tuple[str, dict]] = []

    @property
    def settings(self) -> Notify:
        return Notify.model_validate(
            {"webhook": f"http://127.0.0.1:{self.server_port}/hooks/{SECRET}"}
        )


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, json.loads(body)))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(notify, "WAIT", wait_none())
    monkeypatch.delenv(notify.VARIABLE, raising=False)
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_one_json_object_is_posted(receiver: Receiver) -> None:
    assert notify.notify(receiver.settings, "success", MESSAGE)
    assert receiver.got == [
        (f"/hooks/{SECRET}", {"event": "success", "run_id": "r1", "version": "3"})
    ]


def test_a_busy_receiver_is_tried_again(receiver: Receiver) -> None:
    receiver.statuses = [503, 429]
    assert notify.notify(receiver.settings, "failure", MESSAGE)
    assert len(receiver.got) == 3


@pytest.mark.parametrize(
    ("status", "tries"), [(404, 1), (302, 1), (500, notify.ATTEMPTS)]
)
def test_a_receiver_that_refuses_is_named_without_its_secret(
    receiver: Receiver,
    status: int,
    tries: int,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.statuses = [status] * 9
    with caplog.at_level(logging.DEBUG):
        assert not notify.notify(receiver.settings, "refusal", MESSAGE)
    assert len(receiver.got) == tries
    said = capsys.readouterr().err
    assert (
        f"this refusal was not taken: 127.0.0.1 answered {status}; the run is unaffected"
        in said
    )
    assert SECRET not in said + caplog.text


def test_a_receiver_that_is_not_there_is_no_failure(
    receiver: Receiver, capsys: pytest.CaptureFixture
) -> None:
    gone = Notify.model_validate({"webhook": f"http://127.0.0.1:9/{SECRET}"})
    assert not notify.notify(gone, "success", MESSAGE)
    said = capsys.readouterr().err
    assert "127.0.0.1 could not be reached (ConnectError)" in said
    assert SECRET not in said


def test_only_what_is_wanted_is_told(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = receiver.settings.model_copy(update={"events": ("failure",)})
    assert not notify.notify(failures, "success", MESSAGE)
    assert not notify.notify(Notify(), "failure", MESSAGE)
    assert receiver.got == []
    monkeypatch.setenv(notify.VARIABLE, receiver.settings.webhook.get_secret_value())
    assert notify.notify(Notify(), "failure", MESSAGE)


@pytest.mark.parametrize(
    "url",
    [f"ftp://host/{SECRET}", SECRET, f"https:///{SECRET}", f"http://host:{SECRET}/"],
)
def test_what_is_no_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="is no http:// or https:// address") as caught:
        notify.check_webhook(
            load_params(None, [f"notify.webhook={json.dumps(url)}"]).notify
        )
    assert SECRET not in str(caught.value)


def test_the_address_is_never_written_down(receiver: Receiver) -> None:
    settings = Params(notify=receiver.settings)
    assert settings.model_dump(mode="json")["notify"]["webhook"] is None
    assert SECRET not in repr(settings) + str(settings.model_dump())
    # recipes are laid over it this way
    assert Params.model_validate(settings.model_dump()) == settings
