"""Which failures are worth another try, how long they are tried, and what is said meanwhile."""

import threading
from collections.abc import Callable

import pytest
import tenacity
from prefect.states import Completed, Failed

from elder.errors import UserError
from tasks import retry
from tasks.errors import Unreachable
from tasks.retry import little_patience, patient, patiently, try_again


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the waits between tries, which take no time here; of ten seconds in all."""
    monkeypatch.setenv("ELDER_PATIENCE", "60")
    monkeypatch.setattr(retry, "_said", {})
    slept: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", slept.append)
    return slept


def failing(times: int, error: Exception) -> Callable[[], str]:
    """Return a function that fails so often before it answers."""
    left = [error] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "answered"

    return call


def test_which_tasks_are_tried_again():
    assert try_again(None, None, Failed(data=RuntimeError("who knows")))
    assert not try_again(None, None, Failed(data=UserError("access denied")))
    # store and registry have waited for minutes by then
    assert not try_again(None, None, Failed(data=Unreachable("the server is away")))
    assert not try_again(None, None, Completed(data=1))


def test_what_does_not_answer_is_asked_again_and_said(waits, capsys):
    assert patiently(failing(3, Unreachable("the server is away"))) == "answered"
    assert len(waits) == 3
    assert capsys.readouterr().err.startswith(
        "the server is away; waiting, next try in"
    )


def test_waits_grow_are_random_and_end(waits):
    with pytest.raises(
        Unreachable, match="^the server is away; it was tried for 60 seconds$"
    ):
        patiently(failing(1000, Unreachable("the server is away")))
    assert 60 <= sum(waits) <= 60 + retry.LONGEST_WAIT
    assert waits[0] <= 1
    assert max(waits) > 4
    assert len(set(waits)) == len(waits)


def test_a_refusal_is_not_asked_again(waits):
    with pytest.raises(UserError, match="^access denied$"):
        patiently(failing(1, UserError("access denied")))
    assert waits == []


def test_a_call_inside_another_does_not_wait_by_itself(waits):
    inner = patient(failing(2, Unreachable("away")))
    calls = []

    def outer() -> str:
        calls.append(1)
        return inner()

    assert patiently(outer) == "answered"
    assert len(calls) == 3
    assert len(waits) == 2


def test_checks_give_up_soon(waits):
    with little_patience(), pytest.raises(Unreachable, match="tried for 10 seconds"):
        patiently(failing(1000, Unreachable("away")))


def test_threads_that_wait_for_the_same_say_it_once(waits, capsys):
    def wait() -> None:
        patiently(failing(1, Unreachable("the store is away")))

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err.count("the store is away") == 1


def test_no_patience_at_all(waits, monkeypatch):
    monkeypatch.setenv("ELDER_PATIENCE", "0")
    with pytest.raises(Unreachable, match="^away$"):
        patiently(failing(1, Unreachable("away")))
    assert waits == []


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e9"])
def test_a_patience_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("ELDER_PATIENCE", text)
    with pytest.raises(UserError, match="name the seconds to wait"):
        patiently(lambda: "answered")
