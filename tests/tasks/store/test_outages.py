"""S3 servers that fail for a while: what is asked again, what is said, and that nothing is stored twice or half."""

import random

import pytest

from elder.errors import UserError
from tasks.errors import Unreachable
from tests.tasks.store.faulty import LOST, Fault, Request, times

pytestmark = pytest.mark.usefixtures("credentials")
PASSING = [
    Fault(503, "SlowDown"),
    Fault(500, "InternalError"),
    Fault(503, "ServiceUnavailable"),
    Fault(400, "RequestTimeout"),
    Fault(400, "ThrottlingException"),
    Fault(429, "TooManyRequests"),
    Fault(500),
    Fault(502),
    Fault(503),
    Fault(504),
    Fault(cut=0.0),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{f.status} {f.code}")
def test_every_request_may_fail_twice(relayed, relay, tmp_path, folder, fault, capsys):
    failed: dict[tuple[str, str], int] = {}

    def twice(request: Request) -> Fault | None:
        what = (request.method, request.path)
        failed[what] = failed.get(what, 0) + 1
        return fault if failed[what] <= 2 else None

    relay.fault = twice
    relayed.check()
    published = relayed.publish(folder, "tiny")
    assert relayed.create("history/1", b"first")
    assert relayed.verify(published.url) == []
    copy = relayed.fetch(published.url, tmp_path / "copy")
    weights = (copy / "model.safetensors").read_bytes()
    assert weights == (folder / "model.safetensors").read_bytes()
    said = capsys.readouterr().err
    assert relay.url in said
    assert "waiting, next try in" in said


def test_a_server_that_stays_ill_is_told_in_one_sentence(
    relayed, relay, folder, monkeypatch
):
    monkeypatch.setenv("ELDER_PATIENCE", "0.05")
    relay.fault = lambda _: Fault(503, "SlowDown")
    with pytest.raises(Unreachable) as caught:
        relayed.publish(folder, "tiny")
    assert str(caught.value) == (
        f"{relayed.url}: {relay.url} is overloaded or ill (SlowDown): try again later, or ask who runs it;"
        " it was tried for 0 seconds"
    )


def test_a_refusal_is_not_asked_again(relayed, relay, folder):
    relay.fault = lambda _: Fault(403, "AccessDenied")
    with pytest.raises(UserError, match="access denied"):
        relayed.publish(folder, "tiny")
    assert len(relay.seen) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_body_that_breaks_off_is_read_again(relayed, relay, folder, tmp_path, share):
    url = relayed.publish(folder, "tiny").url

    def read(request: Request) -> bool:
        return request.method == "GET" and "model.safetensors" in request.path

    relay.fault = times(2, Fault(cut=share), read)
    assert relayed.verify(url) == []
    relay.fault = times(2, Fault(cut=share), lambda request: request.method == "GET")
    relay.seen.clear()
    relayed.fetch(url, tmp_path / "copy")
    # of 9 MB in two parts, both of which could be asked for once more; the files beside them are not
    assert relay.count("GET", "model.safetensors") <= 4


def test_a_third_of_all_requests_fails(relayed, relay, folder, tmp_path):
    dice = random.Random(7)
    faults = [*PASSING, LOST, Fault(cut=0.5)]
    relay.fault = lambda _: dice.choice(faults) if dice.random() < 0.3 else None
    for number in range(5):
        published = relayed.publish(folder, f"tiny{number}")
        assert relayed.create(f"history/{number}", b"mine")
        assert not relayed.create(f"history/{number}", b"theirs")
        relayed.fetch(published.url, tmp_path / f"copy{number}")
    relay.fault = lambda _: None
    assert len(relayed.paths("history")) == 5


def test_a_create_whose_answer_got_lost_is_made_once(relayed, relay):
    relayed.check()
    relay.fault = times(1, LOST, lambda request: request.method == "PUT")
    assert relayed.create("history/1", b"ours")
    assert relayed.read("history/1") == b"ours"
    assert relayed.paths("") == {"history/1"}


def test_a_completed_upload_whose_answer_got_lost(relayed, relay, folder):
    relay.fault = times(1, LOST, lambda request: "uploadId" in request.path)
    published = relayed.publish(folder, "tiny")
    relay.fault = times(
        1,
        LOST,
        lambda request: request.method == "POST" and "uploadId" in request.path,
    )
    (folder / "model.safetensors").write_bytes(b"cd" * (9 * 1024 * 512))
    other = relayed.publish(folder, "tiny")
    assert relayed.verify(published.url) == relayed.verify(other.url) == []


def test_an_upload_is_cut_again_and_again(relayed, relay, folder):
    """Each part is asked for by itself, so that a large file gets through."""
    broken = [0]

    def every_other(request: Request) -> Fault | None:
        if "partNumber" not in request.path:
            return None
        broken[0] += 1
        return Fault(cut=0.0) if broken[0] % 2 else None

    relay.fault = every_other
    published = relayed.publish(folder, "tiny")
    assert published.uploaded_bytes == 9 * 1024 * 1024 + 7
    assert relayed.verify(published.url) == []


def test_a_certificate_that_is_not_trusted_is_no_outage(relayed, monkeypatch):
    from botocore.exceptions import SSLError

    def untrusted(*_: object) -> None:
        raise SSLError(endpoint_url="x", error="[SSL: CERTIFICATE_VERIFY_FAILED]")

    monkeypatch.setattr(relayed.client, "_make_api_call", untrusted)
    with pytest.raises(UserError, match="certificate of .* is not trusted") as caught:
        relayed.read("a")
    assert not isinstance(caught.value, Unreachable)


def expired(request: Request) -> Fault:
    """Answer as AWS does; to a HEAD there is no body."""
    return Fault(400, "" if request.method == "HEAD" else "ExpiredToken")


def test_an_expired_token_is_named_even_where_the_answer_has_no_body(
    relayed, relay, folder
):
    url = relayed.publish(folder, "tiny").url
    relay.fault = expired
    sentence = r"the credentials expired \(ExpiredToken\): get new ones"
    with pytest.raises(UserError, match=sentence):
        relayed._has(f"{url}/config.json", relayed.manifest)
    with pytest.raises(UserError, match=sentence) as caught:
        relayed.publish(folder, "tiny")
    assert not isinstance(caught.value, Unreachable)


def test_a_wordless_400_that_nothing_explains(relayed, relay, folder, monkeypatch):
    url = relayed.publish(folder, "tiny").url
    relay.fault = lambda request: Fault(400) if request.method == "HEAD" else None
    monkeypatch.setenv("ELDER_PATIENCE", "0")
    with pytest.raises(Unreachable, match="answers 400 and gives no reason"):
        relayed._has(f"{url}/config.json", relayed.manifest)
