"""An S3 server that fails when it is told to: started as a program it prints its address, and serves until it ends.

Behind it is moto's server. What it does to a request: refuse it, with what S3 says when it is overloaded; carry it out
and lose the answer; drop the connection; cut the body of an answer, or change a byte of it; not answer in time.
"""

import json
import logging
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable
from typing import Any

CONTROL = "/-/chaos"
REFUSALS = [
    (500, "InternalError"),
    (503, "ServiceUnavailable"),
    (503, "SlowDown"),
    (400, "RequestTimeout"),
]
SILENT = 1.5  # seconds without an answer
IMPATIENCE = 1.0  # seconds after which clients here give up waiting for one
FAULTS = ("refuse", "lose the answer", "drop", "cut", "wrong bytes", "silent")


class Failing:
    """A WSGI application in front of another; its faults are drawn by a seed, one draw a request."""

    def __init__(self, behind: Any) -> None:
        self.behind = behind
        self.lock = threading.Lock()
        self.told({"rate": 0.0})

    def told(self, wanted: dict[str, Any]) -> None:
        """Fail as is wanted from now on: the share ``rate`` of requests, in ways ``faults``, drawn by ``seed``."""
        self.rate = wanted["rate"]
        self.faults = wanted.get("faults", ["refuse"])
        self.draw = random.Random(wanted.get("seed", 0))
        self.failed = 0

    def __call__(self, environ: dict[str, Any], answer: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == CONTROL:
            return self._control(environ, answer)
        with self.lock:
            fails = self.draw.random() < self.rate
            fault = self.draw.choice(self.faults)
            refusal = self.draw.choice(REFUSALS)
            self.failed += fails
        if not fails or environ["PATH_INFO"].startswith("/moto-api"):
            return self.behind(environ, answer)
        return self._fail(fault, refusal, environ, answer)

    def _control(self, environ: dict[str, Any], answer: Any) -> list[bytes]:
        failed = self.failed
        if environ["REQUEST_METHOD"] == "POST":
            length = int(environ["CONTENT_LENGTH"])
            self.told(json.loads(environ["wsgi.input"].read(length)))
        answer("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"failed": failed}).encode()]

    def _fail(
        self,
        fault: str,
        refusal: tuple[int, str],
        environ: dict[str, Any],
        answer: Any,
    ) -> Iterable[bytes]:
        reads = environ["REQUEST_METHOD"] == "GET"
        if fault == "drop" or (fault == "cut" and not reads):
            return _hang_up(environ)
        if fault == "silent":
            time.sleep(SILENT)
            return _hang_up(environ)
        if fault == "lose the answer":
            list(self.behind(environ, lambda *_: lambda __: None))
            return _hang_up(environ)
        if reads and fault in ("cut", "wrong bytes"):
            return _spoilt(self.behind, fault, environ, answer)
        return _refuse(*refusal, answer)


def _refuse(status: int, code: str, answer: Any) -> list[bytes]:
    body = f"<Error><Code>{code}</Code><Message>chaos</Message></Error>".encode()
    heading = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    answer(f"{status} {code}", heading)
    return [body]


def _hang_up(environ: dict[str, Any]) -> list[bytes]:
    with_client = environ["werkzeug.socket"]
    with_client.shutdown(socket.SHUT_RDWR)
    return []


def _spoilt(
    behind: Any, fault: str, environ: dict[str, Any], answer: Any
) -> Iterable[bytes]:
    """Answer with half of the body, or with another byte in the middle of it."""
    said: list[Any] = []
    body = b"".join(behind(environ, lambda *heading: said.append(heading)))
    status, headers = said[0][:2]
    middle = len(body) // 2
    is_object = "list-type" not in environ["QUERY_STRING"]
    if fault == "wrong bytes" and body and is_object and status.startswith("20"):
        body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    answer(status, headers)
    return [body[:middle] if fault == "cut" else body]


class Server:
    """The server in a process of its own, as those see it who use it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.services.s3"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.endpoint = self.process.stdout.readline().strip()

    def fail(self, rate: float, faults: Iterable[str] = (), seed: int = 0) -> None:
        """Fail the share ``rate`` of the requests from now on, in these ways."""
        wanted = {"rate": rate, "faults": list(faults) or ["refuse"], "seed": seed}
        self._post(CONTROL, json.dumps(wanted).encode())

    def be_well(self) -> None:
        """Fail no more."""
        self.fail(0.0)

    def forget(self) -> None:
        """Lose all that is stored."""
        self._post("/moto-api/reset", b"")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()

    def _post(self, path: str, data: bytes) -> None:
        urllib.request.urlopen(f"{self.endpoint}{path}", data=data).close()


def be_impatient() -> None:
    """Have clients of this process wait a second for an answer, so that a silent server costs no minute."""
    from botocore.config import Config

    Config.OPTION_DEFAULTS["read_timeout"] = IMPATIENCE


def main() -> None:
    """Serve."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    behind = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, Failing(behind), threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
