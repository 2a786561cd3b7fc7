"""What earlier code published still says to audit and bill of materials what it said then."""

import json
import shutil
from pathlib import Path

import pytest

from elder import params
from elder.record import Record
from elder.settings import validate
from tasks.audit.run import audit
from tasks.provenance.bom import bom
from tasks.registry.client import Registry
from tasks.store.manifest import MANIFEST, describe
from tasks.store.open import configured_store
from tests.tasks.audit.old_records import NAME, OldVersion

CHECKS = [
    "manifest",
    "files",
    "digest",
    "signature",
    "bill of materials",
    "layers and parameters",
    "record in MLflow",
    "parameters in MLflow",
    "metrics in MLflow",
    "tags",
    "gate",
    "layer weights",
    "source model",
    "data",
    "commit",
    "perplexity",
]


@pytest.fixture(scope="module", params=["f46e5ac"])
def old(request: pytest.FixtureRequest) -> OldVersion:
    return OldVersion(request.param)


@pytest.fixture(scope="module")
def root(old: OldVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    old.lay_out(root)
    return root


@pytest.fixture(scope="module")
def settings(root: Path) -> params.Params:
    """Return the parameters of whoever looks the version up today, with a registry that is new."""
    return validate(
        {
            "store": {"url": str(root / "store")},
            "registry": {"name": NAME, "tracking_uri": f"sqlite:///{root}/mlflow.db"},
        }
    )


@pytest.fixture(scope="module")
def version(old: OldVersion, root: Path, settings: params.Params) -> str:
    """Register what earlier code published."""
    record, folder = Record.model_validate(old.record), root / "to publish"
    shutil.copytree(old.published, folder, ignore=shutil.ignore_patterns(MANIFEST))
    published = configured_store(settings.store, root).publish(folder, NAME)
    assert (published.digest, published.uploaded_bytes) == (old.digest, 0)
    registry = Registry(settings.registry)
    run = registry.start_run(record.run_id)
    registry.log_record(run, record)
    number = registry.register(run, record, published)
    artifact = published.model_dump(mode="json", exclude={"uploaded_bytes"})
    later = {"artifact": artifact, "model_version": number}
    registry.log_files(run, record.model_copy(update=later))
    assert number is not None
    return number


def test_an_old_version_holds_in_every_check(
    settings: params.Params, root: Path, version: str
) -> None:
    result = audit(settings, root, f"{NAME}/{version}", measure=True)
    said = {check.name: check.ok for check in result.checks}
    assert list(said) == CHECKS
    assert said.pop("commit") is None  # this project is no git repository
    assert set(said.values()) == {True}, result.checks


def test_an_old_bill_of_materials_is_made_again_byte_for_byte(old: OldVersion) -> None:
    folder = old.published
    stored = (folder / "bom.cdx.json").read_text(encoding="utf-8")
    listed = {
        part["name"] for part in json.loads(stored)["metadata"]["component"]["components"]
    }
    files = {name: file for name, file in describe(folder).items() if name in listed}
    assert bom(Record.model_validate(old.record), files) == stored
