"""What is checked before a promotion or a rollback, and what both leave in history and registry."""

import pytest

from elder import params
from elder.errors import UserError
from tasks.registry import promotion
from tasks.registry.client import Registry
from tasks.registry.promotion import Refused, carry_out, plan_promotion
from tests.tasks.registered import record, register, settings_for
from tests.tasks.registry.decisions import (
    ANNA,
    add,
    champion,
    damage,
    decisions,
    promote,
    roll_back,
    tags,
)


def test_two_promotions_and_a_rollback_tell_the_true_story(settings, tmp_path):
    for number, perplexity in ((1, 20.0), (2, 19.0)):
        add(settings, tmp_path, number, perplexity)
    first = promote(settings, tmp_path, "1")
    assert (first.number, first.action, first.version, first.previous) == (
        1,
        "promote",
        "1",
        None,
    )
    assert "no champion yet" in first.compared
    assert champion(settings) == "1"
    second = promote(settings, tmp_path, "2")
    assert (second.number, second.version, second.previous) == (2, "2", "1")
    assert "is 0.95, which is within" in second.compared  # 19 / 20
    assert champion(settings) == "2"
    assert tags(settings, "1") == {
        "promoted_at": first.at,
        "promoted_by": "anna@host",
        "promoted_reason": "version 1 it is",
        "promoted_from": "none",
        "archived_at": second.at,
        "archived_for": "2",
    }
    assert tags(settings, "2")["promoted_from"] == "1"
    assert "archived_at" not in tags(settings, "2")

    back = roll_back(settings, tmp_path)
    assert (back.number, back.action, back.version, back.previous) == (
        3,
        "rollback",
        "1",
        "2",
    )
    assert champion(settings) == "1"
    assert "archived_at" not in tags(settings, "1")
    assert tags(settings, "1")["promoted_reason"] == "rollback: it failed"
    assert tags(settings, "2")["archived_for"] == "1"
    with pytest.raises(UserError, match="no champion to go back to"):
        roll_back(settings, tmp_path)

    assert decisions(settings, tmp_path) == ([first, second, back], [])
    told = (
        Registry(settings.registry)
        .client.get_registered_model(settings.registry.name)
        .tags
    )
    assert sorted(told) == ["history/000001", "history/000002", "history/000003"]
    assert (
        told["history/000003"]
        == f"rollback from version 2 to 1 by ben@host at {back.at}: it failed"
    )


def test_a_plan_shows_both_versions_and_changes_nothing(local, tmp_path):
    add(local, tmp_path, 1, 20.0)
    add(local, tmp_path, 2, 19.0)
    promote(local, tmp_path, "1")
    plan = plan_promotion(local, tmp_path, local.registry.name, "2")
    assert plan.measured == {
        "2": {"layers": 9, "in_domain": 18.0, "out_of_domain": 19.0, "tasks": 0.75},
        "1": {"layers": 9, "in_domain": 19.0, "out_of_domain": 20.0, "tasks": 0.75},
    }
    assert (plan.number, plan.previous) == (2, "1")
    assert champion(local) == "1"
    assert len(decisions(local, tmp_path)[0]) == 1


def test_what_did_not_pass_is_not_promoted(local, tmp_path):
    why = {
        "off": "its gate was off",
        "dry-run: refused": "did not pass the gate: perplexity out of domain",
        "refused": "did not pass the gate: perplexity out of domain",
    }
    for number, gate in enumerate(why, start=1):
        add(local, tmp_path, number, gate=gate)
        # what the registry says of it is no matter
        Registry(local.registry).client.set_model_version_tag(
            local.registry.name, str(number), "gate", "passed"
        )
        with pytest.raises(Refused, match=f"version {number} of .*: .*{why[gate]}"):
            promote(local, tmp_path, str(number), force=True)
    add(local, tmp_path, 4, gate="dry-run: passed")
    with pytest.raises(UserError, match="version 'x': name a number"):
        promote(local, tmp_path, "x")
    with pytest.raises(UserError, match="version=9.*not found"):
        promote(local, tmp_path, "9")
    assert champion(local) is None
    assert promote(local, tmp_path, "4").version == "4"
    with pytest.raises(UserError, match="is the champion already"):
        promote(local, tmp_path, "4")


def test_worse_or_unlike_models_need_force_and_the_history_keeps_that(local, tmp_path):
    for number, perplexity, protocol in (
        (1, 20.0, "p"),
        (2, 21.0, "p"),
        (3, 10.0, "q"),
    ):
        add(local, tmp_path, number, perplexity, protocol=protocol)
    register(local, tmp_path / "model 4", None)
    promote(local, tmp_path, "1")
    # 21 / 20
    with pytest.raises(
        Refused, match=r"is 1\.05, which exceeds the most allowed, 1\.02.*--force"
    ):
        promote(local, tmp_path, "2")
    with pytest.raises(
        Refused, match=r"another protocol: evaluate\.text p \(candidate: q\)"
    ):
        promote(local, tmp_path, "3")
    with pytest.raises(UserError, match=r"no record\.json"):
        promote(local, tmp_path, "4", force=True)
    assert champion(local) == "1"
    assert promote(local, tmp_path, "2", force=True).compared.startswith(
        "Forced: The perplexity out of domain"
    )
    assert promote(local, tmp_path, "3", force=True).compared.startswith(
        "Forced: There is no comparison with"
    )
    unlimited = local.model_copy(update={"gate": params.Gate(max_champion_ratio=None)})
    assert promote(unlimited, tmp_path, "1").compared.endswith(
        "gate.max_champion_ratio is null."
    )


def test_damaged_bytes_are_neither_promoted_nor_rolled_back_to(local, tmp_path):
    _, first = register(local, tmp_path / "model 1", record(20.0))
    _, second = register(local, tmp_path / "model 2", record(19.0))
    promote(local, tmp_path, "1")
    damage(local, second.digest)
    with pytest.raises(
        Refused,
        match=r"version 2 .* other stored bytes .*model\.safetensors has sha256",
    ):
        promote(local, tmp_path, "2", force=True)
    damage(local, first.digest)
    add(local, tmp_path, 3, 19.5)
    promote(local, tmp_path, "3")
    with pytest.raises(Refused, match="version 1 .* other stored bytes"):
        roll_back(local, tmp_path)
    assert champion(local) == "3"
    assert len(decisions(local, tmp_path)[0]) == 2


@pytest.mark.parametrize("reason", ["", " ", "x" * 1001])
def test_a_decision_needs_a_reason(local, tmp_path, reason):
    plan = promotion.Plan(
        action="promote",
        name="n",
        number=1,
        version="1",
        previous=None,
        digest="d",
        compared="",
        before=None,
        measured={},
    )
    with pytest.raises(UserError, match="say in 1 to 1000 why"):
        carry_out(local, tmp_path, plan, ANNA, reason)


def test_no_registry_is_made_where_there_is_none(tmp_path):
    settings = settings_for(str(tmp_path / "store"), f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="there is no registry"):
        plan_promotion(settings, tmp_path, "tiny", "1")
    assert list(tmp_path.iterdir()) == []
