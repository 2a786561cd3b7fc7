"""Promotion, rollback and history on MLflow with SQLite, with the store in a folder and on S3 over HTTP."""

import threading
from pathlib import Path

import pytest

from elder import params
from elder.errors import UserError
from tasks.registry import promotion
from tasks.registry.client import Registry
from tasks.registry.history import Entry, append, read_log
from tasks.registry.promotion import Refused, carry_out, history, plan_promotion, plan_rollback
from tasks.store.base import Store
from tests.tasks.registered import record, register, settings_for


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make the database once: its first start takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('db')}/mlflow.db"
    Registry(params.Registry(tracking_uri=uri))
    return uri


@pytest.fixture
def settings(store: Store, tracking: str, request: pytest.FixtureRequest) -> params.Params:
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return settings_for(store.url, tracking, getattr(store, "endpoint", None), name)


@pytest.fixture
def local(tmp_path: Path, tracking: str, request: pytest.FixtureRequest) -> params.Params:
    return settings_for(str(tmp_path / "store"), tracking, name=request.node.name)


def add(
    settings: params.Params, root: Path, number: int, perplexity: float = 20.0, **more: str
) -> str:
    """Register version ``number``."""
    gate = more.pop("gate", "passed")
    version, _ = register(settings, root / f"model {number}", record(perplexity, **more), gate)
    assert version == str(number)
    return version


def promote(settings: params.Params, root: Path, version: str, force: bool = False) -> Entry:
    plan = plan_promotion(settings, root, settings.registry.name, version, force)
    return carry_out(settings, root, plan, "anna@host", f"version {version} it is")


def roll_back(settings: params.Params, root: Path) -> Entry:
    return carry_out(
        settings,
        root,
        plan_rollback(settings, root, settings.registry.name),
        "ben@host",
        "it failed",
    )


def champion(settings: params.Params) -> str | None:
    holder = Registry(settings.registry).holder("champion")
    return holder and holder[0]


def tags(settings: params.Params, version: str) -> dict[str, str]:
    found = (
        Registry(settings.registry)
        .client.get_model_version(settings.registry.name, version)
        .tags
    )
    return {key: value for key, value in found.items() if key not in ("digest", "gate")}


def damage(settings: params.Params, digest: str) -> None:
    """Flip a byte of stored weights."""
    path = (
        Path(settings.store.url)
        / "models"
        / settings.registry.name
        / digest
        / "model.safetensors"
    )
    path.write_bytes(b"W" + path.read_bytes()[1:])


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
    assert (back.number, back.action, back.version, back.previous) == (3, "rollback", "1", "2")
    assert champion(settings) == "1"
    assert "archived_at" not in tags(settings, "1")
    assert tags(settings, "1")["promoted_reason"] == "rollback: it failed"
    assert tags(settings, "2")["archived_for"] == "1"
    with pytest.raises(UserError, match="no champion to go back to"):
        roll_back(settings, tmp_path)

    log, fault = history(settings, tmp_path, settings.registry.name)
    assert (log, fault) == ([first, second, back], "")
    told = Registry(settings.registry).client.get_registered_model(settings.registry.name).tags
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
    assert len(history(local, tmp_path, local.registry.name)[0]) == 1


def test_what_did_not_pass_is_not_promoted(local, tmp_path):
    for number, gate in ((1, "off"), (2, "dry-run: refused"), (3, "refused")):
        add(local, tmp_path, number, gate=gate)
        with pytest.raises(
            Refused, match=f"version {number} of .* did not pass the gate .gate: {gate}."
        ):
            promote(local, tmp_path, str(number))
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
    for number, perplexity, protocol in ((1, 20.0, "p"), (2, 21.0, "p"), (3, 10.0, "q")):
        add(local, tmp_path, number, perplexity, protocol=protocol)
    register(local, tmp_path / "model 4", None)
    promote(local, tmp_path, "1")
    with pytest.raises(
        Refused, match=r"is 1\.05, which exceeds the most allowed, 1\.02.*--force"
    ):  # 21 / 20
        promote(local, tmp_path, "2")
    with pytest.raises(Refused, match=r"another protocol: evaluate\.text p \(candidate: q\)"):
        promote(local, tmp_path, "3")
    with pytest.raises(Refused, match=r"no record\.json"):
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
        Refused, match=r"version 2 .* other stored bytes .*model\.safetensors has sha256"
    ):
        promote(local, tmp_path, "2", force=True)
    damage(local, first.digest)
    add(local, tmp_path, 3, 19.5)
    promote(local, tmp_path, "3")
    with pytest.raises(Refused, match="version 1 .* other stored bytes"):
        roll_back(local, tmp_path)
    assert champion(local) == "3"
    assert len(history(local, tmp_path, local.registry.name)[0]) == 2


def test_a_version_that_points_to_another_model_is_refused(local, tmp_path):
    _, first = register(local, tmp_path / "model 1", record(20.0))
    client, name = Registry(local.registry).client, local.registry.name
    tags = {"digest": "e" * 64, "gate": "passed"}
    version = client.create_model_version(name, first.url, tags=tags).version
    with pytest.raises(Refused, match="not those of its digest"):
        promote(local, tmp_path, str(version))


def test_of_two_who_decide_on_the_same_state_the_later_is_told_who_won(settings, tmp_path):
    for number in (1, 2, 3):
        add(settings, tmp_path, number)
    promote(settings, tmp_path, "1")
    name = settings.registry.name
    mine, other = (plan_promotion(settings, tmp_path, name, version) for version in ("2", "3"))
    back = carry_out(settings, tmp_path, other, "ben@there", "urgent")
    with pytest.raises(Refused) as caught:
        carry_out(settings, tmp_path, mine, "anna@here", "better")
    assert str(caught.value) == (
        f"ben@there was faster: promote to version 3 of {name} at {back.at} (urgent); look at elder history {name},"
        " then decide again"
    )
    assert champion(settings) == "3"
    assert [entry.version for entry in history(settings, tmp_path, name)[0]] == ["1", "3"]


def test_many_at_once_make_one_champion(settings, tmp_path):
    for number in (1, 2, 3, 4):
        add(settings, tmp_path, number)
    promote(settings, tmp_path, "1")
    name = settings.registry.name
    plans = [plan_promotion(settings, tmp_path, name, version) for version in ("2", "3", "4")]
    ready, won, lost = threading.Barrier(len(plans)), [], []

    def decide(plan: promotion.Plan) -> None:
        ready.wait()
        try:
            won.append(carry_out(settings, tmp_path, plan, f"user{plan.version}@host", "mine"))
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
    log, _ = history(settings, tmp_path, name)
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

    Registry(local.registry).client.set_registered_model_alias(
        local.registry.name, "champion", "3"
    )  # by hand
    history(local, tmp_path, local.registry.name)
    assert champion(local) == "2"


def test_who_tells_an_older_decision_does_not_have_the_last_word(local, tmp_path, monkeypatch):
    for number in (1, 2, 3):
        add(local, tmp_path, number)
    promote(local, tmp_path, "1")
    plan = plan_promotion(local, tmp_path, local.registry.name, "2")
    store, tell = promotion.configured_store(local.store, tmp_path), promotion.write_history

    def overtaken(named: params.Registry, log: list[Entry]) -> None:
        """Let a newer decision be written and told while this one is being told."""
        if len(log) == 2:
            found = named.client.get_model_version(named.name, "3")
            newer = {
                "number": 3,
                "version": "3",
                "previous": "2",
                "digest": found.tags["digest"],
            }
            newest = log[-1].model_copy(update=newer)
            assert append(store, named.name, newest)
            tell(named, [*log, newest])
        tell(named, log)

    monkeypatch.setattr(promotion, "write_history", overtaken)
    carry_out(local, tmp_path, plan, "anna@host", "better")
    assert champion(local) == "3"
    assert tags(local, "2")["archived_for"] == "3"
    assert "archived_at" not in tags(local, "3")


def test_a_decision_that_the_registry_could_not_be_told_stands(local, tmp_path, monkeypatch):
    add(local, tmp_path, 1)
    plan = plan_promotion(local, tmp_path, local.registry.name, "1")

    def refuse(*_: object) -> None:
        raise UserError("it cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "write_history", refuse)
        with pytest.raises(
            UserError, match="the decision stands .*could not be told .it cannot be reached."
        ):
            carry_out(local, tmp_path, plan, "anna@host", "better")
        log, fault = history(local, tmp_path, local.registry.name)
        assert ([entry.version for entry in log], fault) == (["1"], "it cannot be reached")
    assert history(local, tmp_path, local.registry.name)[1] == ""
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
    store = promotion.configured_store(local.store, tmp_path)
    promote(local, tmp_path, "1")
    other = read_log(store, local.registry.name)[0].model_copy(
        update={"number": 2, "digest": "f" * 64}
    )
    assert append(store, local.registry.name, other)
    client = Registry(local.registry).client
    client.delete_registered_model_alias(local.registry.name, "champion")
    log, fault = history(local, tmp_path, local.registry.name)
    assert len(log) == 2
    assert "use the registry that belongs to this store" in fault
    assert champion(local) is None


def test_a_rollback_to_a_number_that_means_another_model_is_refused(local, tmp_path):
    for number in (1, 2):
        add(local, tmp_path, number)
    promote(local, tmp_path, "1")
    promote(local, tmp_path, "2")
    path = Path(local.store.url) / "history" / local.registry.name / "000001.json"
    first = Entry.model_validate_json(path.read_text())
    path.write_text(first.model_copy(update={"digest": "f" * 64}).model_dump_json())
    with pytest.raises(
        UserError, match="version 1 of .* is the model ffffffffffff..., in the registry it is"
    ):
        roll_back(local, tmp_path)
    assert champion(local) == "2"


def test_a_champion_that_was_deleted_can_be_followed_by_another(local, tmp_path):
    for number in (1, 2, 3):
        add(local, tmp_path, number)
    for version in ("1", "2"):
        promote(local, tmp_path, version)
    client, name = Registry(local.registry).client, local.registry.name
    client.delete_model_version(name, "2")
    assert champion(local) is None
    assert (
        f"version 2 of {name}, champion by the history, is not in the reg"
        in history(local, tmp_path, name)[1]
    )
    with pytest.raises(
        Refused,
        match="no comparison with the champion, version 2: the registry does not have it",
    ):
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
    assert history(local, tmp_path, name)[1] == ""


def test_the_whole_history_is_told_again_but_for_versions_that_were_deleted(local, tmp_path):
    for number in (1, 2, 3):
        add(local, tmp_path, number)
        promote(local, tmp_path, str(number))
    client, name = Registry(local.registry).client, local.registry.name
    wanted = tags(local, "2")
    client.delete_model_version(name, "1")
    client.delete_model_version_tag(name, "2", "promoted_by")
    client.set_model_version_tag(name, "3", "archived_for", "2")
    client.delete_registered_model_tag(name, "history/000001")
    assert history(local, tmp_path, name)[1] == ""
    assert "promoted_by" not in tags(
        local, "2"
    )  # the last decision was told: nobody looks further
    assert history(local, tmp_path, name, whole=True)[1] == ""
    assert tags(local, "2") == wanted
    assert "archived_for" not in tags(local, "3")
    assert sorted(client.get_registered_model(name).tags) == [
        f"history/00000{number}" for number in (1, 2, 3)
    ]
    assert champion(local) == "3"


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
        measured={},
    )
    with pytest.raises(UserError, match="say in 1 to 1000 why"):
        carry_out(local, tmp_path, plan, "anna@host", reason)


def test_no_registry_is_made_where_there_is_none(tmp_path):
    settings = settings_for(str(tmp_path / "store"), f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(UserError, match="there is no registry"):
        plan_promotion(settings, tmp_path, "tiny", "1")
    assert list(tmp_path.iterdir()) == []
