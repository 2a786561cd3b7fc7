"""What whoever may write to store or registry cannot bring about: each attack is refused, in a folder and on S3."""

from pathlib import Path

import pytest

from elder import params
from elder.errors import UserError
from tasks.registry.champion import champion_of
from tasks.registry.client import Registry
from tasks.registry.ledger import open_ledger
from tasks.registry.promotion import Refused
from tasks.store.open import configured_store
from tests.tasks.registered import record, register
from tests.tasks.registry.decisions import (
    add,
    champion,
    decisions,
    digest_of,
    promote,
    roll_back,
)


def client_of(settings: params.Params):
    return Registry(settings.registry).client


def register_again(settings: params.Params, source: str, digest: str) -> str:
    """Make a version that points to a place, with the tags that a run's version has."""
    registry = Registry(settings.registry)
    registry.ensure_model()
    tags = {"digest": digest, "gate": "passed"}
    made = registry.client.create_model_version(registry.name, source, tags=tags)
    return str(made.version)


def source_of(settings: params.Params, version: str) -> str:
    return Registry(settings.registry).source_of(
        f"models:/{settings.registry.name}/{version}"
    )


def test_random_weights_without_a_signature_are_not_promoted(settings, tmp_path):
    unsigned = settings.model_copy(update={"signing": params.Signing(private_key=None)})
    folder = tmp_path / "forged"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"random")
    published = configured_store(unsigned.store, tmp_path).publish(
        folder, settings.registry.name
    )
    version = register_again(settings, published.url, published.digest)
    with pytest.raises(Refused, match=r"model\.sig is missing"):
        promote(settings, tmp_path, version, force=True)
    assert champion(settings) is None


def test_a_foreign_key_signs_nothing_that_is_promoted(settings, tmp_path):
    (tmp_path / "eve").mkdir()
    eve = params.Signing(
        private_key=str(tmp_path / "eve" / "signing.pem"),
        trusted=str(tmp_path / "eve" / "trusted.yaml"),
    )
    forged = settings.model_copy(update={"signing": eve})
    register(forged, tmp_path / "model 1", record(1.5))
    with pytest.raises(Refused, match="by a key that .* does not name"):
        promote(settings, tmp_path, "1", force=True)


def test_a_verdict_that_does_not_follow_from_the_signed_numbers(settings, tmp_path):
    content = record(20.0, gate="refused")
    content["gate"] = content["gate"] | {"passed": True, "rules": []}
    register(settings, tmp_path / "model 1", content)
    with pytest.raises(Refused, match="its verdict does not follow from its numbers"):
        promote(settings, tmp_path, "1", force=True)


def test_a_version_of_another_name_is_not_taken_for_this_one(settings, tmp_path):
    shop = settings.model_copy(
        update={"registry": settings.registry.model_copy(update={"name": "shop"})}
    )
    _, published = register(shop, tmp_path / "model 1", record(20.0))
    version = register_again(settings, published.url, published.digest)
    with pytest.raises(Refused, match="points to a place where no model of"):
        promote(settings, tmp_path, version)
    # copied to where this name's models lie
    folder = configured_store(settings.store, tmp_path).fetch(
        published.url, tmp_path / "copy"
    )
    copied = configured_store(settings.store, tmp_path).publish(
        folder, settings.registry.name
    )
    version = register_again(settings, copied.url, copied.digest)
    with pytest.raises(Refused, match="was made and signed as a model of 'shop'"):
        promote(settings, tmp_path, version)


def test_an_older_version_under_a_new_number_is_told_apart(settings, tmp_path):
    add(settings, tmp_path, 1, 20.0)
    client, name = client_of(settings), settings.registry.name
    replay = register_again(
        settings, source_of(settings, "1"), digest_of(settings, "1")
    )
    with pytest.raises(Refused, match="the registration of version 2 .* not signed"):
        promote(settings, tmp_path, replay)
    tag = client.get_model_version(name, "1").tags["registration"]
    client.set_model_version_tag(name, replay, "registration", tag)
    with pytest.raises(Refused, match="was signed for version 1 of"):
        promote(settings, tmp_path, replay)
    assert promote(settings, tmp_path, "1").version == "1"


def test_a_champion_with_forged_numbers_is_no_champion_for_the_gate(settings, tmp_path):
    for number in (1, 2):
        add(settings, tmp_path, number)
    promote(settings, tmp_path, "1")
    name = settings.registry.name
    client_of(settings).set_registered_model_alias(name, "champion", "2")
    ledger = open_ledger(settings, tmp_path, name)
    fault = champion_of(ledger).fault
    assert "alias champion" in fault
    assert "by the signed history champion is version 1" in fault


# --- history and registry disagree: nothing is moved ---


@pytest.fixture
def decided(settings, tmp_path):
    for number in (1, 2, 3):
        add(settings, tmp_path, number)
        promote(settings, tmp_path, str(number))
    return settings


def refused(settings, root, sentence: str) -> None:
    """See every command refuse, and the alias stay where it is."""
    before = champion(settings)
    (fault,) = decisions(settings, root)[1]
    assert sentence in fault
    for attempt in (
        lambda: promote(settings, root, "1"),
        lambda: roll_back(settings, root),
    ):
        with pytest.raises(Refused, match="Nothing is moved while this is so"):
            attempt()
    assert champion(settings) == before


def test_while_history_and_registry_disagree_nothing_is_moved(decided, tmp_path):
    client, name = client_of(decided), decided.registry.name
    # the alias
    client.set_registered_model_alias(name, "champion", "1")
    refused(decided, tmp_path, "alias champion of")
    client.delete_registered_model_alias(name, "champion")
    refused(decided, tmp_path, "is at version none, by the signed history champion is")
    client.set_registered_model_alias(name, "champion", "3")
    assert decisions(decided, tmp_path)[1] == []
    # what it tells
    story = client.get_registered_model(name).tags["history/000002"]
    edited = story.replace("anna", "eve")
    client.set_registered_model_tag(name, "history/000002", edited)
    refused(decided, tmp_path, "tells decision 2 on")
    client.delete_registered_model_tag(name, "history/000002")
    refused(decided, tmp_path, "does not tell decision 2 on")
    client.set_registered_model_tag(name, "history/000002", story)
    # a registry that is only behind is moved on
    for number in (2, 3):
        client.delete_registered_model_tag(name, f"history/00000{number}")
    client.set_registered_model_alias(name, "champion", "1")
    assert decisions(decided, tmp_path)[1] == []
    assert champion(decided) == "3"


def cut(settings: params.Params, root: Path, numbers: tuple[int, ...]) -> None:
    """Delete entries, as whoever may write to the store's folder or bucket may."""
    store = configured_store(settings.store, root)
    for number in numbers:
        key = f"history/{settings.registry.name}/{number:06d}.json"
        if settings.store.url.startswith("s3://"):
            store.client.delete_object(**store._at(key))
        else:
            (store.root / key).unlink()


def test_a_history_that_was_cut_moves_nothing_until_somebody_signs_it(
    decided, tmp_path
):
    cut(decided, tmp_path, (2, 3))
    history, faults = decisions(decided, tmp_path)
    assert [entry.version for entry in history] == ["1"]
    assert [fault[:32] for fault in faults] == [
        "the registry tells of decision 2",
        "the registry tells of decision 3",
    ]
    with pytest.raises(Refused, match="it was cut"):
        promote(decided, tmp_path, "1")
    cut(decided, tmp_path, (1,))
    with pytest.raises(Refused, match="it was cut"):
        promote(decided, tmp_path, "2")
    assert champion(decided) == "3"
    # signatures of models are not waived with it
    client, name = client_of(decided), decided.registry.name
    tag = client.get_model_version(name, "2").tags["registration"]
    client.delete_model_version_tag(name, "2", "registration")
    with pytest.raises(Refused, match="is not signed"):
        promote(decided, tmp_path, "2", force=True, accept_history=True)
    client.set_model_version_tag(name, "2", "registration", tag)
    entry = promote(decided, tmp_path, "2", accept_history=True)
    assert (entry.number, entry.version, entry.previous) == (4, "2", "3")
    assert "the registry tells of decision 1" in entry.accepted
    assert decisions(decided, tmp_path) == ([entry], [])
    assert champion(decided) == "2"
    assert promote(decided, tmp_path, "1").number == 5
    assert roll_back(decided, tmp_path).version == "2"


def test_who_may_not_decide_is_told_before_anything_is_read(local, tmp_path):
    add(local, tmp_path, 1)
    nobody = local.signing.model_copy(update={"private_key": None})
    with pytest.raises(UserError, match="nothing can be signed"):
        promote(local.model_copy(update={"signing": nobody}), tmp_path, "1")
