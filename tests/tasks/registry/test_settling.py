"""Many who decide at once, crashes in between, registries that fell behind: the history decides, and is told again."""

import threading

import pytest

from elder import params
from elder.errors import UserError
from tasks.provenance.identity import Identity
from tasks.provenance.keys import signer_of
from tasks.registry import promotion
from tasks.registry.client import Registry
from tasks.registry.history import Entry, append
from tasks.registry.promotion import Refused, carry_out, history_of, plan_promotion
from tasks.store.open import open_store
from tests.tasks.registry.decisions import (
    ANNA,
    BEN,
    add,
    champion,
    decisions,
    digest_of,
    promote,
    roll_back,
    tags,
    write,
)


def who(number: str) -> Identity:
    return Identity(f"user{number}@host", "operating system")


def test_of_two_who_decide_on_the_same_state_the_later_is_told_who_won(
    settings, tmp_path
):
    for number in (1, 2, 3):
        add(settings, tmp_path, number)
    promote(settings, tmp_path, "1")
    name = settings.registry.name
    mine, other = (
        plan_promotion(settings, tmp_path, name, version) for version in ("2", "3")
    )
    back = carry_out(settings, tmp_path, other, BEN, "urgent")
    with pytest.raises(Refused) as caught:
        carry_out(settings, tmp_path, mine, ANNA, "better")
    assert str(caught.value) == (
        f"ben@host was faster: promote to version 3 of {name} at {back.at} (urgent); look at elder history {name},"
        " then decide again"
    )
    assert champion(settings) == "3"
    assert [entry.version for entry in decisions(settings, tmp_path)[0]] == [
        "1",
        "3",
    ]


def test_many_at_once_make_one_champion(settings, tmp_path):
    for number in (1, 2, 3, 4):
        add(settings, tmp_path, number)
    promote(settings, tmp_path, "1")
    name = settings.registry.name
    plans = [
        plan_promotion(settings, tmp_path, name, version) for version in ("2", "3", "4")
    ]
    ready, won, lost = threading.Barrier(len(plans)), [], []

    def decide(plan: promotion.Plan) -> None:
        ready.wait()
        try:
            won.append(carry_out(settings, tmp_path, plan, who(plan.version), "mine"))
        except Refused as refusal:
            lost.append(str(refusal))

    threads = [threading.Thread(target=decide, args=[plan]) for plan in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 2
    assert all(said.startswith(f"{won[0].by} was faster") for said in lost)
    log, _ = decisions(settings, tmp_path)
    assert log[1:] == won
    assert champion(settings) == won[0].version


def test_a_crash_between_history_and_registry_is_mended_by_the_next_command(
    local, tmp_path, monkeypatch
):
    for number in (1, 2, 3):
        add(local, tmp_path, number)
    promote(local, tmp_path, "1")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "write_history", crash)
        with pytest.raises(KeyboardInterrupt):
            promote(local, tmp_path, "2")
    assert champion(local) == "1"  # never none
    plan = plan_promotion(local, tmp_path, local.registry.name, "3")
    assert champion(local) == "2"
    assert (plan.number, plan.previous) == (3, "2")
    assert tags(local, "1")["archived_for"] == "2"


def test_who_tells_an_older_decision_does_not_have_the_last_word(
    local, tmp_path, monkeypatch
):
    for number in (1, 2, 3):
        add(local, tmp_path, number)
    promote(local, tmp_path, "1")
    plan = plan_promotion(local, tmp_path, local.registry.name, "2")
    store, tell = open_store(local.store.url), promotion.write_history
    signer = signer_of(local.signing, tmp_path, "decision")

    def overtaken(named: params.Registry, log: list[Entry]) -> None:
        """Let a newer decision be written and told while this one is being told."""
        if len(log) == 2:
            found = named.client.get_model_version(named.name, "3")
            newer = {
                "number": 3,
                "version": "3",
                "previous": "2",
                "digest": found.tags["digest"],
                "before": log[-1].sha256,
            }
            newest = log[-1].model_copy(update=newer)
            assert append(store, named.name, newest, signer)
            tell(named, [*log, newest])
        tell(named, log)

    monkeypatch.setattr(promotion, "write_history", overtaken)
    carry_out(local, tmp_path, plan, ANNA, "better")
    assert champion(local) == "3"
    assert tags(local, "2")["archived_for"] == "3"
    assert "archived_at" not in tags(local, "3")


def test_a_decision_that_the_registry_could_not_be_told_stands(
    local, tmp_path, monkeypatch
):
    add(local, tmp_path, 1)
    plan = plan_promotion(local, tmp_path, local.registry.name, "1")

    def refuse(*_: object) -> None:
        raise UserError("it cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "write_history", refuse)
        with pytest.raises(
            UserError,
            match="the decision stands .*could not be told .it cannot be reached.",
        ):
            carry_out(local, tmp_path, plan, ANNA, "better")
        log, faults = decisions(local, tmp_path)
        assert [entry.version for entry in log] == ["1"]
        assert "not brought in line with the history: it cannot be reach" in faults[0]
    assert decisions(local, tmp_path)[1] == []
    assert champion(local) == "1"


def test_a_champion_from_before_the_history_is_where_a_rollback_ends(local, tmp_path):
    for number in (1, 2):
        add(local, tmp_path, number)
    Registry(local.registry).client.set_registered_model_alias(
        local.registry.name, "champion", "1"
    )
    assert promote(local, tmp_path, "2").previous == "1"
    assert roll_back(local, tmp_path).version == "1"
    assert champion(local) == "1"


def test_a_registry_of_another_history_is_left_alone(local, tmp_path):
    add(local, tmp_path, 1)
    promote(local, tmp_path, "1")
    write(local, tmp_path, digest="f" * 64)
    client = Registry(local.registry).client
    log, faults = decisions(local, tmp_path)
    assert len(log) == 2
    assert "use the registry that belongs to this store" in faults[0]
    told = client.get_registered_model(local.registry.name).tags
    assert "history/000002" not in told


def test_a_rollback_to_a_number_that_means_another_model_is_refused(local, tmp_path):
    for number in (1, 2):
        add(local, tmp_path, number)
    write(local, tmp_path, version="1", digest="f" * 64)
    write(local, tmp_path, version="2", digest=digest_of(local, "2"))
    with pytest.raises(
        UserError,
        match="version 1 of .* is the model ffffffffffff..., in the registry it is",
    ):
        roll_back(local, tmp_path)
    assert champion(local) is None


def test_a_champion_that_was_deleted_can_be_followed_by_another(local, tmp_path):
    for number in (1, 2, 3):
        add(local, tmp_path, number)
    for version in ("1", "2"):
        promote(local, tmp_path, version)
    client, name = Registry(local.registry).client, local.registry.name
    client.delete_model_version(name, "2")
    assert champion(local) is None
    (fault,) = decisions(local, tmp_path)[1]
    assert f"version 2 of {name}, champion by the history, is not in the reg" in fault
    with pytest.raises(Refused, match="no comparison with the champion, version 2: "):
        promote(local, tmp_path, "3")
    assert roll_back(local, tmp_path).previous == "2"
    assert champion(local) == "1"
    client.delete_model_version(name, "1")
    third = promote(local, tmp_path, "3", force=True)
    assert (third.previous, third.compared[:46]) == (
        "1",
        "Forced: There is no comparison with the champi",
    )
    assert champion(local) == "3"
    assert decisions(local, tmp_path)[1] == []


def test_the_whole_history_is_told_again_but_for_versions_that_were_deleted(
    local, tmp_path
):
    for number in (1, 2, 3):
        add(local, tmp_path, number)
        promote(local, tmp_path, str(number))
    client, name = Registry(local.registry).client, local.registry.name
    wanted = tags(local, "2")
    client.delete_model_version(name, "1")
    client.delete_model_version_tag(name, "2", "promoted_by")
    client.set_model_version_tag(name, "3", "archived_for", "2")
    assert decisions(local, tmp_path)[1] == []
    # the last decision was told: nobody looks further
    assert "promoted_by" not in tags(local, "2")
    assert history_of(local, tmp_path, name, whole=True)[1] == []
    assert tags(local, "2") == wanted
    assert "archived_for" not in tags(local, "3")
    assert sorted(client.get_registered_model(name).tags) == [
        f"history/00000{number}" for number in (1, 2, 3)
    ]
    assert champion(local) == "3"
