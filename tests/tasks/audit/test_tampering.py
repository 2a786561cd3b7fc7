"""An audit names each of many ways to tamper with a version."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from elder import params
from elder.record import Record
from tasks.provenance import signing
from tasks.provenance.signing import SIGNATURE
from tasks.store.manifest import MANIFEST
from tests.tasks.audit.published import Version, broken, edit, flip, renew_manifest


def weights_flipped(version: Version) -> None:
    flip(version.place / "model.safetensors")


def tokenizer_flipped(version: Version) -> None:
    flip(version.place / "tokenizer.json")


def record_edited(version: Version) -> None:
    edit(
        version.place / "record.json", lambda record: record["energy"].update(kwh=0.125)
    )
    renew_manifest(version.place)


def metric_changed(version: Version) -> None:
    version.client.log_metric(version.run, "candidate/perplexity/in_domain", 1.0)


def file_missing(version: Version) -> None:
    (version.place / "README.md").unlink()


def file_added(version: Version) -> None:
    (version.place / "extra.py").write_text("print()")


def verdict_flipped(version: Version) -> None:
    edit(
        version.place / "record.json", lambda record: record["gate"].update(passed=True)
    )
    renew_manifest(version.place)


def tag_changed(version: Version) -> None:
    version.client.set_model_version_tag("shallow", version.number, "gate", "passed")


def digest_tag_changed(version: Version) -> None:
    version.client.set_model_version_tag("shallow", version.number, "digest", "0" * 64)


def repointed(version: Version) -> None:
    other = version.again()
    with sqlite3.connect(version.root / "mlflow.db") as database:
        change = "update model_versions set source = ?, storage_location = ? where name = 'shallow' and version = ?"
        assert (
            database.execute(
                change, (str(other.place), str(other.place), int(version.number))
            ).rowcount
            == 1
        )


def signed_by_another(version: Version) -> None:
    other = params.Signing(private_key="other.pem")
    signing.sign(version.place, other, version.root)
    renew_manifest(version.place)


def bill_edited(version: Version) -> None:
    edit(
        version.place / "bom.cdx.json",
        lambda bom: bom["components"][0].update(version="6.6.6"),
    )
    renew_manifest(version.place)


def artifact_edited(version: Version) -> None:
    version.client.log_text(version.run, json.dumps({"rows": []}), "record.json")


def artifact_missing(version: Version) -> None:
    (attached,) = (version.root / "mlartifacts").rglob(
        f"{version.run}/artifacts/record.json"
    )
    attached.unlink()


def layer_weights_edited(version: Version) -> None:
    version.client.log_text(version.run, "{}", "layer_weights.json")


def manifest_edited(version: Version) -> None:
    edit(
        version.place / MANIFEST,
        lambda manifest: manifest["files"]["config.json"].update(bytes=1),
    )


STORED = {
    "files",
    "digest",
    "signature",
    "bill of materials",
}  # what a changed file breaks, seen from four sides
COVERED = {
    "manifest",
    "digest",
    "signature",
    "bill of materials",
}  # the same, where the manifest was made to fit


# How, the checks that find it, and what they name.
TAMPERED: list[tuple[Callable[[Version], None], set[str], str]] = [
    (weights_flipped, STORED, "model.safetensors"),
    (tokenizer_flipped, STORED, "tokenizer.json"),
    (record_edited, COVERED | {"record in MLflow", "metrics in MLflow"}, "energy"),
    (metric_changed, {"metrics in MLflow"}, "candidate/perplexity/in_domain"),
    (file_missing, STORED, "README.md"),
    (file_added, STORED - {"bill of materials"}, "extra.py"),
    (
        verdict_flipped,
        COVERED | {"record in MLflow", "gate", "tags"},
        "passed is True, judged again False",
    ),
    (tag_changed, {"tags"}, "gate"),
    (digest_tag_changed, {"digest"}, "tag digest is 000"),
    (
        repointed,
        {"digest", "record in MLflow", "tags"},
        "is not the place of its digest",
    ),
    (signed_by_another, COVERED - {"bill of materials"}, "does not hold"),
    (bill_edited, COVERED, "components"),
    (artifact_edited, {"record in MLflow"}, "curve"),
    (
        artifact_missing,
        {"record in MLflow"},
        "download artifacts from path 'record.json'",
    ),
    (layer_weights_edited, {"layer weights"}, "layer_weights.json"),
    (manifest_edited, {"manifest"}, "manifest.json"),
]


@pytest.mark.parametrize(("tamper", "expected", "named"), TAMPERED)
def test_every_kind_of_tampering_is_found_and_named(
    settings: params.Params,
    root: Path,
    version: Version,
    tamper: Callable[[Version], None],
    expected: set[str],
    named: str,
) -> None:
    tamper(version)
    found = broken(settings, root, version)
    assert set(found) == expected
    assert named in " ".join(found.values())


def test_whoever_covers_all_tracks_but_has_no_key_is_found(
    settings: params.Params, root: Path, version: Version
) -> None:
    """Seconds are in the record alone: every place that repeats them is made to fit."""
    edit(
        version.place / "record.json",
        lambda record: record.update(created="2026-11-25T02:15:00+00:00"),
    )
    from tasks.provenance.bom import write_bom

    record = json.loads((version.place / "record.json").read_text())
    (version.place / MANIFEST).unlink()
    write_bom(version.place, Record.model_validate(record), leave_out=(SIGNATURE,))
    new = renew_manifest(version.place)
    moved = version.place.rename(version.place.with_name(new))
    with sqlite3.connect(root / "mlflow.db") as database:
        change = "update model_versions set source = ?, storage_location = ? where name = 'shallow' and version = ?"
        database.execute(change, (str(moved), str(moved), int(version.number)))
    version.client.set_model_version_tag("shallow", version.number, "digest", new)
    later = {
        "artifact": {"url": str(moved), "digest": new},
        "model_version": version.number,
    }
    version.client.log_text(version.run, json.dumps(record | later), "record.json")
    assert set(broken(settings, root, version)) == {"signature"}
