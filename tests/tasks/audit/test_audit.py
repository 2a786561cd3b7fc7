"""An audit finds nothing wrong with an honest version, and says what it cannot know."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from elder import params
from elder.compression.compress import save_with_record
from elder.errors import UserError
from elder.record import CompressionRecord, Record
from tasks.audit.run import audit
from tasks.record import publish_folder
from tests.tasks.audit.published import Version, broken, flip, words


def test_an_honest_version_holds_in_everything(
    settings: params.Params, root: Path, version: Version
) -> None:
    result = audit(settings, root, "shallow@challenger", measure=True)
    assert [check for check in result.checks if check.ok is not True] == []
    assert (result.ok, result.name, result.version) == (True, "shallow", version.number)
    assert len(result.checks) == 16


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
    } <= set(first.files)


def test_the_key_decides_who_must_have_signed(
    settings: params.Params, root: Path, publish_version: Callable[..., Version]
) -> None:
    other = publish_version(params.Signing(private_key="other.pem"))
    assert set(broken(settings, root, other)) == {"signature"}
    assert broken(settings, root, other, public_key=root / "other.pub.pem") == {}
    with pytest.raises(UserError, match="there is no public key"):
        audit(settings, root, f"shallow/{other.number}", public_key=root / "absent.pem")


def test_what_is_not_here_is_neither_right_nor_wrong(
    settings: params.Params, tmp_path: Path, version: Version, root: Path
) -> None:
    result = audit(settings, tmp_path, f"shallow/{version.number}")
    unknown = {check.name: check.detail for check in result.checks if check.ok is None}
    assert set(unknown) == {"signature", "source model", "data", "commit"}
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
