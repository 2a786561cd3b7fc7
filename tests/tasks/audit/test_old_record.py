"""What earlier code published still says to audit, bill of materials and reproduction what it said then."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from elder import params
from elder.record import Record
from elder.settings import validate
from tasks.audit.reproduce import Reproduction, make_again
from tasks.audit.run import audit
from tasks.provenance.bom import bom
from tasks.provenance.lineage import has_commit
from tasks.registry.client import Registry
from tasks.store.manifest import MANIFEST, describe
from tasks.store.open import configured_store
from tests.tasks.audit.old_records import NAME, OldVersion

ROOT = Path(__file__).parents[3]
CHECKS = [
    "names",
    "manifest",
    "files",
    "digest",
    "signature",
    "registration",
    "name",
    "history",
    "bill of materials",
    "MLflow model",
    "layers and parameters",
    "record in MLflow",
    "parameters in MLflow",
    "metrics in MLflow",
    "tags",
    "report",
    "gate",
    "layer weights",
    "source model",
    "data",
    "commit",
    "perplexity",
]
# which earlier code did not sign
UNSIGNED = ["registration", "report"]


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
    number = registry.register_version(run, record, published)
    artifact = published.model_dump(mode="json", exclude={"uploaded_bytes"})
    later = {"artifact": artifact, "model_version": number}
    registry.log_files(run, record.model_copy(update=later))
    assert number is not None
    return number


def test_an_old_version_holds_in_every_check(
    settings: params.Params, root: Path, version: str
) -> None:
    result = audit(settings, root, f"{NAME}/{version}", measure=True, waive=UNSIGNED)
    said = {check.name: check.ok for check in result.checks}
    assert (list(said), result.ok, result.waived) == (CHECKS, True, UNSIGNED)
    assert all("is not signed" in told.detail for told in result.checks if told.waived)
    assert result.unknown == ["commit"]  # this project is no git repository
    whole = [check for check in CHECKS if check not in [*UNSIGNED, "commit"]]
    assert all(said[check] is True for check in whole), result.checks


def test_an_old_bill_of_materials_is_made_again_byte_for_byte(old: OldVersion) -> None:
    folder = old.published
    stored = (folder / "bom.cdx.json").read_text(encoding="utf-8")
    listed = {
        part["name"]
        for part in json.loads(stored)["metadata"]["component"]["components"]
    }
    files = {name: file for name, file in describe(folder).items() if name in listed}
    assert bom(Record.model_validate(old.record), files) == stored


def holds(result: Reproduction) -> None:
    """Check that the same model came out, to the last bit where machine and packages are those of then."""
    comparison = result.comparison
    assert comparison.same_layers
    assert comparison.same_weights or not comparison.same_machine
    assert comparison.ok, result
    assert set(result.data) == {
        "calibration.safetensors",
        "in_domain.txt",
        "out_of_domain.txt",
    }


def test_the_present_code_makes_an_old_version_again(
    settings: params.Params, root: Path, version: str
) -> None:
    """The record holds parameters at places where they no longer are; the commit is not known in this folder."""
    (root / "elder").symlink_to(ROOT / "elder")
    result = make_again(settings, root, f"{NAME}/{version}", waive=UNSIGNED)
    assert result.code == "the present code"
    holds(result)


@pytest.mark.slow
def test_its_own_commit_makes_an_old_version_again(
    old: OldVersion,
    settings: params.Params,
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = old.record["lineage"]["git_commit"]
    if not has_commit(ROOT, commit):
        pytest.skip(f"this clone lacks commit {commit[:12]}")
    # numbers are the record's
    monkeypatch.setenv("ELDER_SET", "select.layers=2 recover.epochs=0")
    clone = tmp_path / "clone"
    command = [
        "git",
        "clone",
        "--quiet",
        "--shared",
        "--no-checkout",
        str(ROOT),
        str(clone),
    ]
    subprocess.run(command, check=True)
    old.lay_out(clone)
    result = make_again(settings, clone, f"{NAME}/{version}", waive=UNSIGNED)
    assert result.code == f"commit {commit}"
    assert not [note for note in result.comparison.notes if "present code" in note]
    holds(result)
