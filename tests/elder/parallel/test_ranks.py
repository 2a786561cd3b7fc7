"""How work is shared out, seen from each of several processes; and what is said of those that failed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elder.errors import Crash, UserError
from elder.parallel import launch, ranks
from elder.parallel.shard import shares
from elder.settings import validate


def seen_by_each(monkeypatch: pytest.MonkeyPatch, count: int) -> Any:
    for rank in range(count):
        monkeypatch.setattr(ranks, "_here", ranks._Place(rank, count))
        yield rank


@pytest.mark.parametrize(("rows", "at_once"), [(4, 2), (3, 2), (5, 1), (1, 4), (7, 3)])
def test_pieces_make_up_the_batch_and_keep_all_in_step(
    rows: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(rows).view(rows, 1) + 1
    found, lengths, weight = [], set(), 0.0
    for _ in seen_by_each(monkeypatch, 3):
        pieces = list(shares(ids, at_once))
        lengths.add(len(pieces))
        for piece, share in pieces:
            assert len(piece) <= at_once
            assert share in (0.0, len(piece) / rows)
            weight += share
            if share:
                found += piece.flatten().tolist()
    assert found == list(range(1, rows + 1))
    assert len(lengths) == 1
    assert weight == pytest.approx(1.0)


def test_one_process_has_the_whole_batch_in_the_pieces_that_it_always_had() -> None:
    ids = torch.arange(10).view(5, 2)
    pieces = list(shares(ids, 2))
    assert [share for _, share in pieces] == [0.4, 0.4, 0.2]
    assert torch.equal(torch.cat([piece for piece, _ in pieces]), ids)


def test_results_come_in_the_order_of_the_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: dict[int, list[str]] = {}
    for rank in seen_by_each(monkeypatch, 2):
        monkeypatch.setattr(ranks, "gather", lambda mine: [mine, mine])
        ranks.share("abc", lambda item, of=rank: done.setdefault(of, []).append(item))
    # who has no item left does the last one once more
    assert done == {0: ["a", "c"], 1: ["b", "c"]}
    monkeypatch.setattr(ranks, "gather", lambda _: [["A", "C"], ["B", "C"]])
    assert ranks.share("abc", str.upper) == ["A", "B", "C"]


def test_alone_is_as_with_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_here", ranks._Place(1, 4))
    with ranks.alone():
        assert (ranks.rank(), ranks.count()) == (0, 1)
        assert ranks.told("mine") == "mine"
    assert (ranks.rank(), ranks.count()) == (1, 4)


def failed(timestamp: int, status: int) -> Any:
    return SimpleNamespace(timestamp=timestamp, exitcode=status)


def test_those_that_were_ended_are_not_at_fault() -> None:
    ended = {0: failed(100, -15), 1: failed(100, -9), 2: failed(111, -9)}
    assert launch._at_fault(ended) == {1: -9}
    assert launch._at_fault({0: failed(5, 3), 1: failed(6, 2)}) == {0: 3, 1: 2}


@pytest.mark.parametrize(
    ("statuses", "told", "kind", "sentence"),
    [
        ({1: -9}, None, Crash, r"process 1 of 2 \(0 to 1\) was killed \(SIGKILL\), as"),
        ({0: 3, 1: -11}, "lost", Crash, "process 1 of 2 .* was killed by SIGSEGV; all"),
        ({0: 2, 1: 2}, "no such text", UserError, "no such text"),
        ({0: 3}, "the engine died", Crash, "the engine died"),
    ],
)
def test_what_is_said_of_a_failure(
    statuses: dict[int, int], told: str | None, kind: type, sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        launch._tell(2, statuses, told)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)

    def wanted(processes: object, device: str = "auto") -> int:
        asked = {"launch": {"processes": processes}, "model": {"device": device}}
        return launch.wanted_processes(validate(asked))

    assert [wanted(n) for n in (1, 2, "auto")] == [1, 2, 2]
    assert [wanted(n, "cpu") for n in (1, 2, "auto")] == [1, 2, 1]
    with pytest.raises(UserError, match="processes is 3, and this machine has 2 GPUs"):
        wanted(3)
    monkeypatch.setattr("elder.device.torch.empty", lambda *_, **__: None)
    with pytest.raises(UserError, match="each process takes a GPU of its own"):
        wanted(2, "cuda:1")
