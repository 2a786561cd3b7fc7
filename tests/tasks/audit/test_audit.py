"""An audit finds nothing wrong with an honest version, and says what it cannot know."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import LlamaForCausalLM

from elder import params
from elder.compression.compress import save_with_record
from elder.errors import UserError
from elder.record import CompressionRecord, Record
from tasks.audit.run import audit
from tasks.record import publish_folder
from tests.tasks.audit.published import FOREIGN, Version, broken, decide, flip, words


def test_an_honest_version_holds_in_everything(
    settings: params.Params, root: Path, version: Version
) -> None:
    decide(version)
    result = audit(settings, root, f"{version.name}@champion", measure=True)
    assert [check for check in result.checks if check.ok is not True] == []
    assert (result.ok, result.name, result.version) == (
        True,
        version.name,
        version.number,
    )
    assert (result.broken, result.waived, result.unknown) == ([], [], [])
    assert len(result.checks) == 22


def test_a_run_that_publishes_again_publishes_the_same_bytes(
    root: Path,
    settings: params.Params,
    shallow: tuple[LlamaForCausalLM, dict[str, Any]],
    tmp_path: Path,
) -> None:
    model, record = shallow
    compressed = CompressionRecord.model_validate(record)
    save_with_record(model, words(), tmp_path / "model", compressed)
    first = publish_folder(
        tmp_path / "model", Record.model_validate(record), settings, root
    )
    second = publish_folder(
        tmp_path / "model", Record.model_validate(record), settings, root
    )
    assert (second.digest, second.uploaded_bytes) == (first.digest, 0)
    assert {
        "record.json",
        "bom.cdx.json",
        "model.sig",
        "README.md",
        "elder.json",
        "MLmodel",
    } <= set(first.files)


def test_the_key_decides_who_must_have_signed(
    settings: params.Params, root: Path, publish_version: Callable[..., Version]
) -> None:
    other = publish_version(FOREIGN)
    assert set(broken(settings, root, other)) == {"signature", "registration"}
    assert broken(settings, root, other, public_key=root / "foreign.pub.pem") == {}
    with pytest.raises(UserError, match="is no public key"):
        audit(settings, root, f"{other.name}/1", public_key=root / "absent.pem")


def test_a_fresh_clone_that_trusts_nobody_fails(
    settings: params.Params, tmp_path: Path, version: Version, root: Path
) -> None:
    nobody = settings.model_copy(
        update={"signing": params.Signing(trusted="absent.yaml")}
    )
    found = broken(nobody, root, version)
    assert set(found) == {"signature", "registration"}
    assert "absent.yaml" in found["signature"]


def test_a_waived_check_may_fail_and_is_told(
    settings: params.Params, root: Path, publish_version: Callable[..., Version]
) -> None:
    other = publish_version(FOREIGN)
    waive = ["signature", "registration", "gate"]
    result = audit(settings, root, f"{other.name}/1", waive=[*waive, "report"])
    assert result.ok
    # the gate holds, so that nothing of it is waived
    assert result.waived == ["signature", "registration", "report"]
    told = {check.name: check for check in result.checks}
    assert (told["signature"].ok, told["signature"].waived) == (False, True)
    assert "does not name" in told["signature"].detail
    with pytest.raises(UserError, match="'signatures': there is no such check"):
        audit(settings, root, f"{other.name}/1", waive=["signatures"])


@pytest.mark.parametrize(
    ("dates", "fault"),
    [
        ({"since": "2026-11-25"}, "counts since 2026-11-25"),
        ({"until": "2026-11-23"}, "counted until 2026-11-23"),
        ({"since": "2026-11-24", "until": "2026-11-24"}, None),
    ],
)
def test_a_signature_counts_within_the_dates_of_its_key(
    settings: params.Params,
    root: Path,
    version: Version,
    dates: dict[str, str],
    fault: str | None,
) -> None:
    """The record was made on 2026-11-24, the registration today."""
    keys = yaml.safe_load((root / "keys" / "trusted.yaml").read_text())
    del keys[0]["since"]
    (root / "dated.yaml").write_text(yaml.safe_dump([keys[0] | dates]))
    dated = settings.model_copy(
        update={"signing": params.Signing(trusted="dated.yaml")}
    )
    found = broken(dated, root, version)
    assert fault is None or fault in found["signature"]
    assert ("signature" in found) is (fault is not None)


def test_what_is_not_here_is_neither_right_nor_wrong(
    settings: params.Params, tmp_path: Path, version: Version, root: Path
) -> None:
    shutil.copytree(root / "keys", tmp_path / "keys")
    result = audit(settings, tmp_path, f"{version.name}/{version.number}")
    unknown = {check.name: check.detail for check in result.checks if check.ok is None}
    assert list(unknown) == result.unknown == ["source model", "data", "commit"]
    assert all(detail.startswith("not checked here: ") for detail in unknown.values())
    assert result.ok is True


def test_a_source_model_that_changed_since_is_named(
    settings: params.Params, root: Path, version: Version
) -> None:
    weights = root / "models" / "dense" / "model.safetensors"
    before = weights.read_bytes()
    flip(weights)
    try:
        assert set(broken(settings, root, version)) == {"source model"}
    finally:
        weights.write_bytes(before)


def test_names_that_mean_nothing_are_refused(
    settings: params.Params, root: Path, version: Version
) -> None:
    for name in ("shallow", "shallow@", "a/b/3"):
        with pytest.raises(UserError, match="NAME@ALIAS or NAME/VERSION"):
            audit(settings, root, name)
    with pytest.raises(UserError, match="absent"):
        audit(settings, root, "absent/1")
