"""Ways to tamper with a version, the checks of an audit that find each, and what they name."""

import base64
import json
import sqlite3
from collections.abc import Callable

from tasks.audit.run import CHECKS
from tasks.audit.store import STORE_CHECKS
from tasks.provenance import signing
from tasks.provenance.signing import SIGNATURE
from tasks.store.manifest import MANIFEST
from tests.tasks.audit.published import (
    FOREIGN,
    Version,
    decide,
    edit,
    flip,
    renew_manifest,
)


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
    version.client.set_model_version_tag(version.name, version.number, "gate", "passed")


def digest_tag_changed(version: Version) -> None:
    version.client.set_model_version_tag(
        version.name, version.number, "digest", "0" * 64
    )


def repointed(version: Version) -> None:
    point_to(version, version.again().url)


def point_to(version: Version, url: str) -> None:
    """Have the registry lead elsewhere, as somebody can who writes to its database."""
    with sqlite3.connect(version.root / "mlflow.db") as database:
        change = "update model_versions set source = ?, storage_location = ? where name = ? and version = ?"
        values = (url, url, version.name, int(version.number))
        assert database.execute(change, values).rowcount == 1


def signed_by_another(version: Version) -> None:
    signing.sign(version.place, FOREIGN, version.root)
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


def signature_missing(version: Version) -> None:
    (version.place / SIGNATURE).unlink()
    renew_manifest(version.place)


def published_by_a_foreigner(version: Version) -> None:
    """Everything is as it should be, but for who signed it."""
    vars(version).update(vars(version.again(FOREIGN)))


def name_swapped(version: Version) -> None:
    other = f"prod-{version.name}"
    version.client.create_registered_model(other)
    register_again(version, other)


def registered_again(version: Version) -> None:
    """Register an older version under the newest number."""
    version.again()
    register_again(version, version.name)


def register_again(version: Version, name: str) -> None:
    """Register a version with all that the registry says of it, as somebody can who writes there."""
    told = version.client.get_model_version(version.name, version.number)
    made = version.client.create_model_version(
        name, version.url, run_id=version.run, tags=told.tags
    )
    version.name, version.number = name, str(made.version)


def registration_missing(version: Version) -> None:
    version.client.delete_model_version_tag(
        version.name, version.number, "registration"
    )


def report_edited(version: Version) -> None:
    version.client.log_text(version.run, "<h1>better</h1>", "report.html")


def report_of_another_run(version: Version) -> None:
    """Bring the signed list along, too."""
    other = version.again()
    listed = version.client.get_run(other.run).data.tags["attached"]
    version.client.set_tag(version.run, "attached", listed)


def file_attached(version: Version) -> None:
    version.client.log_text(version.run, "<script>", "notes.html")


def history_cut(version: Version) -> None:
    decide(version)
    decide(version.again())
    version.put(f"history/{version.name}/000002.json", None)


def history_gone(version: Version) -> None:
    decide(version)
    version.put(f"history/{version.name}/000001.json", None)


def entry_missing(version: Version) -> None:
    decide(version)
    decide(version.again())
    version.put(f"history/{version.name}/000001.json", None)


def entry_edited(version: Version) -> None:
    decide(version)
    key = f"history/{version.name}/000001.json"
    bundle = json.loads(version.get(key))
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    forged = payload.replace(b"ada@example.org", b"eve@example.org")
    assert forged != payload
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(forged).decode()
    version.put(key, json.dumps(bundle).encode())


def entry_of_another_model(version: Version) -> None:
    """Put a signed decision on another model into the place of this one's."""
    decide(version)
    key = f"history/{version.name}/000001.json"
    signed = version.get(key)
    name_swapped(version)
    version.put(f"history/{version.name}/000001.json", signed)


def alias_moved(version: Version) -> None:
    decide(version)
    set_champion(version, version.again().number)


def alias_moved_back(version: Version) -> None:
    """Make it look as if the registry were behind: it does not tell the last decision any more."""
    decide(version)
    decide(version.again())
    version.client.delete_registered_model_tag(version.name, "history/000002")
    set_champion(version, version.number)


def alias_without_decision(version: Version) -> None:
    set_champion(version, version.number)


def set_champion(version: Version, number: str) -> None:
    version.client.set_registered_model_alias(version.name, "champion", number)


def link_laid(version: Version) -> None:
    (version.place / "passwd").symlink_to("/etc/passwd")


def weights_linked(version: Version) -> None:
    weights = version.place / "model.safetensors"
    weights.rename(version.root / "elsewhere")
    weights.symlink_to(version.root / "elsewhere")


# what a changed file breaks; nothing else is looked at then
STORED = {"files", "digest", "signature", "registration"}
# the same, where the manifest was made to fit
COVERED = STORED - {"files"} | {"manifest"}
# what is read once the signature holds
CONTENT = [
    name for name in CHECKS if name not in {*STORE_CHECKS, "registration", "history"}
]


# How, the checks that find it, and what they name.
TAMPERED: list[tuple[Callable[[Version], None], set[str], str]] = [
    (weights_flipped, STORED, "model.safetensors"),
    (tokenizer_flipped, STORED, "tokenizer.json"),
    (record_edited, COVERED, "record.json is not what was signed"),
    (metric_changed, {"metrics in MLflow"}, "candidate/perplexity/in_domain"),
    (file_missing, STORED, "README.md"),
    (file_added, STORED, "extra.py"),
    (verdict_flipped, COVERED, "record.json is not what was signed"),
    (tag_changed, {"tags"}, "gate"),
    (digest_tag_changed, {"digest"}, "tag digest is 000"),
    (
        repointed,
        {"digest", "registration", "record in MLflow", "tags", "report"},
        "is not the place of its digest",
    ),
    (signed_by_another, COVERED, "does not name"),
    (signature_missing, COVERED, "model.sig is missing"),
    (published_by_a_foreigner, {"signature", "registration"}, "does not name"),
    (bill_edited, COVERED, "bom.cdx.json is not what was signed"),
    (artifact_edited, {"record in MLflow", "report"}, "curve"),
    (
        artifact_missing,
        {"record in MLflow", "report"},
        "download artifacts from path 'record.json'",
    ),
    (layer_weights_edited, {"layer weights", "report"}, "layer_weights.json"),
    (report_edited, {"report"}, "report.html is not what was attached"),
    (report_of_another_run, {"report"}, "was signed for run"),
    (file_attached, {"report"}, "notes.html was not attached"),
    (manifest_edited, {"manifest"}, "manifest.json"),
    (name_swapped, {"registration", "name"}, "it is another model"),
    (registered_again, {"registration"}, "it is another model"),
    (registration_missing, {"registration"}, "is not signed"),
    (history_cut, {"history"}, "it was cut"),
    (history_gone, {"history"}, "it was cut"),
    (entry_missing, {"history"}, "entry 1 of the history"),
    (entry_edited, {"history"}, "does not hold"),
    (entry_of_another_model, {"registration", "name", "history"}, "does not belong"),
    (alias_moved, {"history"}, "alias champion"),
    (alias_moved_back, {"history"}, "the registry's alias is at version 1"),
    (alias_without_decision, {"history"}, "no decision says so"),
]
# on a disk alone
LINKED: list[tuple[Callable[[Version], None], set[str], str]] = [
    (link_laid, {"names"}, "'passwd' is a symbolic link"),
    (weights_linked, {"names", *STORED}, "'model.safetensors' is a symbolic link"),
]
