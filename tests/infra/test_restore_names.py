"""A registry is filled from models in their own places, whatever else lies in the store and however it is called."""

from pathlib import Path

import pytest

from infra import restore as script
from tasks.provenance.trust import Trust
from tasks.store.open import open_store


def test_only_what_lies_in_the_place_of_a_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names come from whoever may write to the store; a link could lead to any other model."""
    good, spoilt, linked = ("0" * 64, "1" * 64, "2" * 64)
    models = tmp_path / "store" / "models"
    for place in (good, spoilt, "f00", "G" * 64):
        (models / "tiny" / place).mkdir(parents=True)
        (models / "tiny" / place / "manifest.json").write_text("{}")
    (models / "tiny" / spoilt / "record.json").symlink_to(tmp_path / "elsewhere")
    (models / "tiny" / linked).symlink_to(models / "tiny" / good)
    (models / "\x1b[2J").mkdir()
    (models / "\x1b[2J" / "manifest.json").write_text("{}")
    read: list[str] = []
    monkeypatch.setattr(
        script, "_believed", lambda name, store, prefix, trust: read.append(prefix)
    )
    monkeypatch.setattr(script, "created_at", lambda record: 0)
    store = open_store(str(tmp_path / "store"))
    _, lines = script._records("tiny", store, Trust(keys=(), place="nobody"))
    assert read == [f"models/tiny/{good}"]
    assert lines == [
        f"models/tiny: '{spoilt}/record.json' is a symbolic link: its model is left out",
        f"models/tiny: '{linked}' is a symbolic link: its model is left out",
        f"models/tiny: '{'G' * 64}/manifest.json' left out, it is in no place of a model",
        "models/tiny: 'f00/manifest.json' left out, it is in no place of a model",
    ]
    assert script._names(store) == ["tiny"]
