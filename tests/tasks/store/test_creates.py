"""Servers that cannot create without replacing are found before any work, and never get a decision to write."""

import errno
import os

import pytest

from elder.errors import UserError
from tasks.errors import Unreachable
from tasks.store.open import open_store
from tests.tasks.store.faulty import LOST, Fault, Request, times

pytestmark = pytest.mark.usefixtures("credentials")


def ignores(request: Request) -> None:
    """Be a server that does not know the header, and overwrites."""
    request.headers.pop("If-None-Match", None)


def unknown(request: Request) -> Fault | None:
    """Be a server that refuses the header, as Backblaze B2 does."""
    return Fault(501, "NotImplemented") if "If-None-Match" in request.headers else None


SENTENCES = {
    ignores: "If-None-Match is ignored",
    unknown: "If-None-Match is answered with NotImplemented",
}


@pytest.mark.parametrize("fault", list(SENTENCES), ids=lambda fault: fault.__name__)
def test_they_are_found_before_any_work(relayed, relay, fault):
    relay.fault = fault
    with pytest.raises(UserError) as caught:
        relayed.check()
    assert not isinstance(caught.value, Unreachable)
    assert str(caught.value) == (
        f"{relayed.url}: {relay.url} has no conditional writes ({SENTENCES[fault]}), so that an old decision could undo"
        " a newer one: set store.url to a store that has them, such as AWS S3, those of docs/services.md, or a local"
        " folder"
    )
    relay.fault = lambda _: None
    assert relayed.paths("") == set()


@pytest.mark.parametrize("fault", list(SENTENCES), ids=lambda fault: fault.__name__)
def test_an_old_plan_never_overwrites_a_decision(relayed, relay, fault):
    """Also where nobody checked before."""
    assert relayed.create("history/tiny/1", b"a decision")
    relayed._proved = False  # as for another process
    relay.fault = fault
    with pytest.raises(UserError, match="has no conditional writes"):
        relayed.create("history/tiny/1", b"an old plan")
    relay.fault = lambda _: None
    assert relayed.read("history/tiny/1") == b"a decision"


def test_a_server_that_has_them_is_asked_once(relayed, relay):
    relayed.check()
    relay.seen.clear()
    assert relayed.create("history/tiny/1", b"a decision")
    assert [one.method for one in relay.seen] == ["PUT", "GET"]


@pytest.mark.parametrize("fault", list(SENTENCES), ids=lambda fault: fault.__name__)
def test_where_nothing_may_be_deleted_one_object_stays(relayed, relay, fault):
    def undeletable(request: Request) -> Fault | None:
        return Fault(403, "AccessDenied") if request.method == "DELETE" else None

    relay.fault = undeletable
    relayed.check()
    relayed.check()
    assert relayed.paths("") == {".write-check"}
    relay.fault = lambda request: undeletable(request) or fault(request)
    with pytest.raises(UserError, match="has no conditional writes"):
        relayed.check()
    assert relayed.paths("") == {".write-check"}


def test_a_probe_whose_answers_get_lost(relayed, relay):
    relay.fault = times(3, LOST, lambda request: request.method == "PUT")
    relayed.check()
    assert relayed.paths("") == set()


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    store = open_store(str(tmp_path / "store"))

    def unknown_there(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unknown_there)
    with pytest.raises(UserError, match="has no hard links .* set store.url to"):
        store.check()
    store.check(creates=False)
    assert store.paths("") == set()
