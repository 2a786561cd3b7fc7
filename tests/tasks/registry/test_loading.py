"""Models are loaded from a store or a registry only if a trusted key has signed them, under this name and number."""

from pathlib import Path

import pytest

from elder import params
from elder.errors import UserError
from tasks.registry.client import Registry
from tasks.registry.registration import TAG
from tasks.store import models
from tests.tasks.registered import keys, record, register
from tests.tasks.registry.decisions import add, promote

NOT_LOADED = "is not loaded: .*signing.required=false loads what nobody"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> params.Signing:
    """Return a key that its owner alone trusts."""
    return keys(tmp_path_factory.mktemp("foreign"))


def signed_with(settings: params.Params, signing: params.Signing) -> params.Params:
    return settings.model_copy(update={"signing": signing})


def named(settings: params.Params, name: str) -> params.Params:
    registry = settings.registry.model_copy(update={"name": name})
    return settings.model_copy(update={"registry": registry})


def loads(name: str, settings: params.Params) -> bytes:
    return (models.fetch(name, settings) / "model.safetensors").read_bytes()


def test_what_was_signed_is_loaded_by_each_of_its_names(
    settings: params.Params, here: Path
) -> None:
    version, published = register(settings, here / "model 1", record(20.0))
    name = settings.registry.name
    promote(settings, here, version)
    for uri in (f"models:/{name}/1", f"models:/{name}@champion", published.url):
        assert loads(uri, settings) == b"weights of model 1"


def test_what_a_foreign_key_signed_is_refused(
    settings: params.Params, foreign: params.Signing, here: Path
) -> None:
    other = signed_with(settings, foreign)
    _, published = register(other, here / "model 1", record(20.0))
    for uri in (f"models:/{settings.registry.name}/1", published.url):
        with pytest.raises(UserError, match="does not name"):
            models.fetch(uri, settings)
        assert loads(uri, other) == b"weights of model 1"
        willing = foreign.model_copy(
            update={"required": False, "trusted": "nobody.yaml"}
        )
        assert loads(uri, signed_with(settings, willing)) == b"weights of model 1"
    assert not list((here / "build").rglob("model 1"))


def test_where_nobody_is_trusted_nothing_is_loaded(
    settings: params.Params, here: Path
) -> None:
    _, published = register(settings, here / "model 1", record(20.0))
    nobody = signed_with(settings, params.Signing(trusted="nobody.yaml"))
    for uri in (f"models:/{settings.registry.name}/1", published.url):
        with pytest.raises(UserError, match=NOT_LOADED):
            models.fetch(uri, nobody)


def test_another_name_and_another_number_are_refused(
    settings: params.Params, here: Path
) -> None:
    name = settings.registry.name
    add(settings, here, 1)
    add(settings, here, 2, 21.0)
    registry = Registry(settings.registry)
    first = registry.client.get_model_version(name, "1")
    registry.client.create_registered_model(f"prod-{name}")
    for other in (name, f"prod-{name}"):
        made = registry.client.create_model_version(
            other, first.source, tags=first.tags
        )
        with pytest.raises(UserError, match=NOT_LOADED):
            models.fetch(f"models:/{other}/{made.version}", settings)
    registry.client.delete_model_version_tag(name, "2", TAG)
    with pytest.raises(UserError, match="version 2 .*is not signed"):
        models.fetch(f"models:/{name}/2", settings)


def test_a_model_that_lies_under_another_name_is_refused(
    settings: params.Params, here: Path
) -> None:
    """Its bytes are signed, its place is not."""
    from tasks.store.open import configured_store

    register(settings, here / "model 1", record(20.0))
    store = configured_store(settings.store, here)
    moved = store.publish(here / "model 1", f"prod-{settings.registry.name}")
    with pytest.raises(UserError, match="signed as a model of"):
        models.fetch(moved.url, settings)


def test_a_champion_that_nobody_decided_on_is_refused(
    settings: params.Params, here: Path
) -> None:
    name = settings.registry.name
    first, second = add(settings, here, 1), add(settings, here, 2, 21.0)
    registry = Registry(settings.registry)
    registry.client.set_registered_model_alias(name, "champion", first)
    with pytest.raises(UserError, match="by the signed history champion is version"):
        models.fetch(f"models:/{name}@champion", settings)
    registry.client.delete_registered_model_alias(name, "champion")
    promote(settings, here, first)
    registry.client.set_registered_model_alias(name, "champion", second)
    with pytest.raises(UserError, match="alias champion"):
        models.fetch(f"models:/{name}@champion", settings)
    # by its number it is what it was
    assert loads(f"models:/{name}/2", settings) == b"weights of model 2"
