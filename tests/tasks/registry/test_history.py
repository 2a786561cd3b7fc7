"""The signed, chained log of decisions: entries that are never replaced, and each way in which it is tampered with."""

import base64
import json
from pathlib import Path

import pytest
import yaml

from elder import params
from elder.errors import UserError
from tasks.provenance.bundle import (
    REGISTRATION,
    BadSignature,
    Statement,
    covered_statement,
    sign_statement,
)
from tasks.provenance.keys import signer_of
from tasks.provenance.signing import check_key
from tasks.provenance.trust import trust_of
from tasks.registry.history import Entry, History, append, champions, read_history
from tasks.store.base import Store
from tasks.store.open import open_store

PLACE = Path("history") / "tiny"


def entry(
    number: int,
    action: str,
    version: str,
    previous: str | None = None,
    by: str = "anna@host",
    before: str | None = None,
) -> Entry:
    return Entry(
        number=number,
        action=action,
        version=version,
        previous=previous,
        digest="d" * 64,
        by=by,
        at="2026-11-24T02:15:00.000+00:00",
        reason="better",
        compared="not compared",
        before=before,
    )


class Log:
    """A history that is written for a test."""

    def __init__(self, store: Store, signing: params.Signing) -> None:
        self.store, self.signing = store, signing
        self.signer = signer_of(signing, Path(), "decision")

    def read(self, name: str = "tiny") -> History:
        return read_history(self.store, name, trust_of(self.signing, Path()))

    def add(self, version: str, name: str = "tiny", **more: object) -> bool:
        """Add the next decision."""
        history = self.read(name)
        made = entry(len(history.files) + 1, "promote", version, before=history.head)
        return append(self.store, name, made.model_copy(update=more), self.signer)

    @property
    def fault(self) -> str:
        (fault,) = self.read().faults
        return fault


@pytest.fixture
def log(tmp_path: Path, signing: params.Signing) -> Log:
    made = Log(open_store(str(tmp_path / "store")), signing)
    for version in ("1", "2", "3"):
        assert made.add(version)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store" / PLACE


def test_entries_come_back_in_order_and_are_never_replaced(store, signing):
    log = Log(store, signing)
    assert log.read() == History([], [], {})
    assert log.add("1")
    assert log.add("2", previous="1")
    assert not log.add("3", number=2)
    history = log.read()
    told = [(one.number, one.version, one.previous) for one in history.entries]
    assert told == [(1, "1", None), (2, "2", "1")]
    assert history.faults == []
    assert history.entries[1].before == history.entries[0].sha256 == history.files[1]
    assert history.entries[0].signed_by == trust_of(signing, Path()).keys[0].name
    assert store.paths("history/tiny") == {"000001.json", "000002.json"}
    assert log.read("other").entries == []


def test_files_of_other_names_are_not_looked_at(log, place):
    for name in (".DS_Store", "000004.json.tmp", "4.json", "readme"):
        (place / name).write_text("{}")
    assert [one.version for one in log.read().entries] == ["1", "2", "3"]
    assert log.read().faults == []


def test_an_entry_that_is_missing(log, place):
    (place / "000002.json").unlink()
    assert log.fault == "entry 2 of the history of tiny is missing"
    assert [one.version for one in log.read().entries] == ["1"]


def test_an_edited_entry_is_shown_as_nothing(log, place):
    path = place / "000002.json"
    bundle = json.loads(path.read_text())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["by"] = "eve@host"
    edited = base64.b64encode(json.dumps(payload).encode()).decode()
    bundle["dsseEnvelope"]["payload"] = edited
    path.write_text(json.dumps(bundle))
    assert "it is not what the key" in log.fault
    assert [one.by for one in log.read().entries] == ["anna@host"]
    for text in ("", "{}", "[]", "null", "[" * 100_000):
        path.write_text(text)
        assert "is no signature" in log.fault


def test_base64_with_letters_beyond_ascii_is_no_signature(log, place):
    path = place / "000002.json"
    for text in ("\u00e4", "\ud800"):
        bundle = json.loads(path.read_text())
        bundle["dsseEnvelope"]["payload"] = text
        path.write_text(json.dumps(bundle))
        assert "is no signature" in log.fault
        with pytest.raises(BadSignature):  # where a later entry accepted it
            covered_statement(path.read_bytes(), "entry 2")
    del bundle["dsseEnvelope"]["payload"]
    path.write_text(json.dumps(bundle | {"dsseEnvelope": "text"}))
    assert "is no signature" in log.fault


def test_an_entry_of_another_model_or_number_does_not_belong_there(log, place):
    log.add("7", name="other")
    other = place.parent / "other" / "000001.json"
    whole = (place / "000001.json").read_bytes()
    (place / "000001.json").write_bytes(other.read_bytes())
    assert "a decision on 'other/7', number 1: it does not belong there" in log.fault
    (place / "000001.json").write_bytes((place / "000002.json").read_bytes())
    assert "'tiny/2', number 2: it does not belong there" in log.fault
    (place / "000001.json").write_bytes(whole)
    assert log.read().faults == []


def test_an_entry_that_was_replaced_breaks_the_chain(log, place):
    """Whoever may decide signs another entry 2: entry 3 follows the first one."""
    (place / "000002.json").unlink()
    one = log.read().files[1]
    other = entry(2, "promote", "5", before=one)
    assert append(log.store, "tiny", other, log.signer)
    assert "entry 3 of the history of tiny follows another entry 2" in log.fault
    assert [one.version for one in log.read().entries] == ["1", "5"]


def test_the_first_entries_cannot_be_cut(log, place):
    (place / "000001.json").unlink()
    assert log.fault == "entry 1 of the history of tiny is missing"
    assert log.read().entries == []


def test_a_foreign_key_decides_nothing(log, place, tmp_path):
    foreign = params.Signing(private_key="eve.pem", trusted="eve.yaml")
    check_key(foreign, tmp_path)
    made = entry(4, "promote", "9", before=log.read().head)
    append(log.store, "tiny", made, signer_of(foreign, tmp_path, "decision"))
    assert "by a key that" in log.fault
    assert len(log.read().entries) == 3


def test_a_key_for_models_decides_nothing(log, tmp_path):
    path = Path(log.signing.trusted)
    (key,) = yaml.safe_load(path.read_text())
    told = tmp_path / "trusted.yaml"
    told.write_text(yaml.safe_dump([key | {"roles": ["model"]}]))
    trust = trust_of(log.signing.model_copy(update={"trusted": str(told)}), Path())
    history = read_history(log.store, "tiny", trust)
    assert history.entries == []
    assert "does not trust with this: role 'decision'" in history.faults[0]


def test_a_decision_after_the_keys_last_day_does_not_count(log, tmp_path):
    (key,) = yaml.safe_load(Path(log.signing.trusted).read_text())
    told = tmp_path / "trusted.yaml"
    told.write_text(yaml.safe_dump([key | {"until": "2026-11-23"}]))
    trust = trust_of(log.signing.model_copy(update={"trusted": str(told)}), Path())
    assert (
        "counted until 2026-11-23" in read_history(log.store, "tiny", trust).faults[0]
    )


def test_a_statement_of_another_kind_is_no_decision(log, place):
    statement = Statement(REGISTRATION, {"tiny/2": "d" * 64}, {})
    path = place / "000002.json"
    path.write_bytes(sign_statement(statement, log.signer))
    assert "of another kind" in log.fault


# --- a history that is accepted as it lies ---


def old(number: int, version: str) -> str:
    """Return an entry as versions wrote it that did not sign."""
    return json.dumps(
        {
            "number": number,
            "action": "promote",
            "version": version,
            "previous": None,
            "digest": "d" * 64,
            "by": "anna@host",
            "at": "2026-11-24T02:15:00.000+00:00",
            "reason": "better",
            "compared": "",
        }
    )


def test_an_unsigned_history_counts_once_it_is_accepted(tmp_path, signing):
    log = Log(open_store(str(tmp_path / "store")), signing)
    place = tmp_path / "store" / PLACE
    place.mkdir(parents=True)
    for number in (1, 2):
        (place / f"00000{number}.json").write_text(old(number, str(number)))
    assert log.read().entries == []
    assert "entry 1 of the history of tiny is no signature" in log.fault
    files = log.read().files
    assert log.add("3", earlier=files, accepted="it was not signed")
    history = log.read()
    assert [one.version for one in history.entries] == ["1", "2", "3"]
    assert history.faults == []
    assert history.entries[0].signed_by == "accepted with entry 3"
    assert log.add("4")
    assert champions(log.read().entries) == ["1", "2", "3", "4"]
    (place / "000001.json").write_text(old(1, "9"))
    assert log.fault == "entries 1 of the history of tiny are not what entry 3 accepted"
    (place / "000001.json").unlink()
    assert log.fault == "entries 1 of the history of tiny are not what entry 3 accepted"


def test_a_gap_that_was_accepted_stays_one(log, place):
    (place / "000002.json").unlink()
    assert log.add("4", number=4, earlier=log.read().files)
    history = log.read()
    assert [one.version for one in history.entries] == ["1", "3", "4"]
    assert (history.faults, history.start) == ([], 4)


def test_names_that_are_no_place(store, signing):
    for name in ("../models", "a/b", "", ".hidden"):
        with pytest.raises(UserError, match="use letters"):
            Log(store, signing).read(name)


@pytest.mark.parametrize(
    ("log", "stack"),
    [
        ([], []),
        ([("promote", "1", None)], ["1"]),
        (
            [("promote", "1", None), ("promote", "2", "1"), ("promote", "3", "2")],
            ["1", "2", "3"],
        ),
        # 1, 2, 3, back to 2: what lies above 2 is gone, the next rollback goes to 1
        (
            [
                ("promote", "1", None),
                ("promote", "2", "1"),
                ("promote", "3", "2"),
                ("rollback", "2", "3"),
            ],
            ["1", "2"],
        ),
        # ... and from 1 there is nothing before it
        (
            [("promote", "1", None), ("promote", "2", "1"), ("rollback", "1", "2")],
            ["1"],
        ),
        # promoted again after a rollback
        (
            [
                ("promote", "1", None),
                ("promote", "2", "1"),
                ("rollback", "1", "2"),
                ("promote", "2", "1"),
            ],
            ["1", "2"],
        ),
        # a champion from before the log began, set by hand
        ([("promote", "5", "4")], ["4", "5"]),
        ([("promote", "5", "4"), ("rollback", "4", "5")], ["4"]),
        # 1, 2, 1 again: back goes to 2, then to the first 1
        (
            [
                ("promote", "1", None),
                ("promote", "2", "1"),
                ("promote", "1", "2"),
                ("rollback", "2", "1"),
            ],
            ["1", "2"],
        ),
    ],
)
def test_champions_by_hand(log, stack):
    entries = [entry(number, *decision) for number, decision in enumerate(log, start=1)]
    assert champions(entries) == stack
