"""A relay in front of an S3 server that fails where it is told to, and passes everything else on."""

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    """What a fault is decided by; a fault may take headers away before the request is passed on."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """What becomes of a request.

    Attributes:
        status: of the answer in place of the server's; None: the server's own.
        code: S3's error code in the body; "": no body.
        done: the request is carried out before it fails.
        cut: the connection is cut after this share of the answer's body; None: never.
    """

    status: int | None = None
    code: str = ""
    done: bool = False
    cut: float | None = None


LOST = Fault(done=True, cut=0.0)  # it was carried out, and nobody hears of it
Decide = Callable[[Request], Fault | None]


@dataclass
class Faulty:
    """The relay; ``fault`` decides on each request, ``seen`` holds those that came."""

    target: str
    fault: Decide = lambda _: None
    seen: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, method: str, path: str = "") -> int:
        """Return how many requests of a method came, whose path holds a text."""
        return sum(one.method == method and path in one.path for one in self.seen)


def times(number: int, fault: Fault, of: Callable[[Request], bool]) -> Decide:
    """Fail with the first so many requests of a kind."""
    left = [fault] * number

    def decide(request: Request) -> Fault | None:
        return left.pop() if left and of(request) else None

    return decide


def _handler(relay: Faulty) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relayed(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.path, dict(self.headers.items()))
            relay.seen.append(request)
            fault = relay.fault(request) or Fault()
            if fault.status is None or fault.done:
                answer = self.ask(request, body)
            if fault.status is not None:
                code = f"<Error><Code>{fault.code}</Code></Error>" if fault.code else ""
                return self.give(fault.status, {}, code.encode(), fault.cut)
            self.give(*answer, fault.cut)

        def ask(
            self, request: Request, body: bytes
        ) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(
                relay.target.removeprefix("http://")
            )
            connection.request(request.method, request.path, body, request.headers)
            answer = connection.getresponse()
            own = ("connection", "transfer-encoding", "server", "date")
            headers = {
                key: value
                for key, value in answer.getheaders()
                if key.lower() not in own
            }
            return answer.status, headers, answer.read()

        def give(
            self, status: int, headers: dict[str, str], body: bytes, cut: float | None
        ) -> None:
            if cut == 0.0:
                self.close_connection = True
                return
            self.send_response(status)
            headers = {"Content-Length": str(len(body))} | headers
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if cut is None else body[: int(len(body) * cut)])
            if cut is not None:
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_PATCH = relayed

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
