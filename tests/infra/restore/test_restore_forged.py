"""What somebody who may write to store or registry lays there is not registered when the registry is filled again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from elder import params
from elder.errors import UserError
from infra.restore import restore
from tasks.provenance.keys import new_key
from tasks.registry.client import Reference, Registry
from tasks.registry.registration import TAG
from tasks.registry.versions import CHAMPION
from tasks.store.manifest import MANIFEST, describe, digest, dump
from tests.infra.restore.lost import Make, run
from tests.tasks.registry.decisions import promote


def place_of(settings: params.Params, version: str) -> Path:
    return Path(Registry(settings.registry).source_of(f"models:/tiny/{version}"))


def laid_again(place: Path) -> Path:
    """Write a manifest that fits what lies in a place, and move it where that belongs."""
    (place / MANIFEST).unlink(missing_ok=True)
    files = describe(place)
    (place / MANIFEST).write_bytes(dump(files))
    return place.rename(place.with_name(digest(files)))


def said_of(lines: list[str], place: Path) -> str:
    """Return what is said of a place that was left out."""
    (line,) = [line for line in lines if place.name in line]
    assert "left out" in line
    return line


def test_a_forged_champion_is_named_and_not_registered(
    settings_with: Make, tmp_path: Path
) -> None:
    before = settings_with("before")
    for number in (1, 2):
        run(before, tmp_path, number)
    promote(before, tmp_path, "2")
    place = place_of(before, "2")
    (place / "model.safetensors").write_bytes(b"random weights")
    after = settings_with("after")
    lines, fault = restore(after, tmp_path)
    assert "model.safetensors has 14 bytes" in said_of(lines, place)
    assert "run 20261124-020100-ab12cd34: version 1" in lines
    assert "version 2 of tiny, champion by the history, is not in the registry" in fault
    assert Registry(after.registry).holder(CHAMPION) is None


def test_a_model_with_a_manifest_of_its_own_is_not_registered(
    settings_with: Make, tmp_path: Path
) -> None:
    before = settings_with("before")
    run(before, tmp_path, 1)
    place = place_of(before, "1")
    (place / "model.safetensors").write_bytes(b"random weights")
    forged = laid_again(place)
    lines, _ = restore(settings_with("after"), tmp_path)
    assert "model.safetensors is not what was signed" in said_of(lines, forged)
    (forged / "model.sig").unlink()
    forged = laid_again(forged)
    lines, _ = restore(settings_with("again"), tmp_path)
    assert "model.sig is missing" in said_of(lines, forged)


def test_a_model_by_a_key_that_nobody_trusts_is_not_registered(
    settings_with: Make, tmp_path: Path
) -> None:
    before = settings_with("before")
    own = params.Signing(
        private_key=str(tmp_path / "other.pem"), trusted=str(tmp_path / "other.yaml")
    )
    new_key(own, tmp_path, ["model"])
    listed = tmp_path / "other.yaml"
    listed.write_text(listed.read_text().replace("since", "until"))
    listed.write_text(listed.read_text().replace("2026", "2999"))
    run(before.model_copy(update={"signing": own}), tmp_path, 1)
    place = place_of(before, "1")
    lines, _ = restore(settings_with("after"), tmp_path)
    assert "is by a key that" in said_of(lines, place)


def test_a_model_of_another_name_is_not_registered(
    settings_with: Make, tmp_path: Path
) -> None:
    before = settings_with("before")
    section = before.registry.model_copy(update={"name": "shop"})
    run(before.model_copy(update={"registry": section}), tmp_path, 1)
    (shop,) = (tmp_path / "store" / "models" / "shop").iterdir()
    place = tmp_path / "store" / "models" / "tiny" / shop.name
    shutil.copytree(shop, place)
    lines, _ = restore(settings_with("after"), tmp_path)
    assert "it was signed as a model of 'shop'" in said_of(lines, place)


def test_only_a_key_for_models_signs_versions_again(
    settings_with: Make, tmp_path: Path, signing: params.Signing
) -> None:
    before = settings_with("before")
    run(before, tmp_path, 1)
    listed = Path(signing.trusted).read_text()
    decides = tmp_path / "decides.yaml"
    decides.write_text(listed.replace("- model\n", ""))
    section = signing.model_copy(update={"trusted": str(decides)})
    after = settings_with("after").model_copy(update={"signing": section})
    with pytest.raises(UserError, match="is not trusted with models"):
        restore(after, tmp_path)


def tags_of(settings: params.Params, version: str) -> dict[str, Any]:
    return Registry(settings.registry).look_up(Reference("tiny", None, version)).tags


def test_an_old_model_under_a_new_number_stays_unsigned(
    settings_with: Make, tmp_path: Path
) -> None:
    settings = settings_with("before")
    run(settings, tmp_path, 1)
    promote(settings, tmp_path, "1")
    run(settings, tmp_path, 2)
    registry = Registry(settings.registry)
    for version in ("1", "2"):
        tags = tags_of(settings, version)
        again = {key: value for key, value in tags.items() if key != TAG}
        source = str(place_of(settings, version))
        registry.client.create_model_version("tiny", source, tags=again)
    lines, fault = restore(settings, tmp_path)
    assert fault == ""
    for number, other in ((3, 1), (4, 2)):
        assert (
            f"version {number}: left as it is, the model that it names is version {other}"
            in lines
        )
        assert TAG not in tags_of(settings, str(number))


def test_a_registration_that_does_not_hold_is_signed_again(
    settings_with: Make, tmp_path: Path
) -> None:
    settings = settings_with("before")
    for number in (1, 2):
        run(settings, tmp_path, number)
    client = Registry(settings.registry).client
    false = {"1": json.dumps({"no": "bundle"}), "2": tags_of(settings, "1")[TAG]}
    for version, tag in false.items():
        client.set_model_version_tag("tiny", version, TAG, tag)
    assert restore(settings, tmp_path)[1] == ""
    for version in false:
        promote(settings, tmp_path, version)
