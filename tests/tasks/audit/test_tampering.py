"""An audit names each of many ways to tamper with a version."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from elder import params
from elder.errors import UserError
from elder.record import Record
from tasks.audit.reproduce import make_again
from tasks.audit.run import audit
from tasks.provenance.bom import write_bom
from tasks.provenance.signing import SIGNATURE
from tasks.store.manifest import MANIFEST
from tests.tasks.audit.published import Version, broken, edit, renew_manifest
from tests.tasks.audit.tampering import (
    CONTENT,
    LINKED,
    TAMPERED,
    bill_edited,
    file_added,
    name_swapped,
    point_to,
    published_by_a_foreigner,
    record_edited,
    registered_again,
    verdict_flipped,
    weights_flipped,
)


@pytest.mark.parametrize(("tamper", "expected", "named"), TAMPERED + LINKED)
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


# what content that nobody signed is found to be, if somebody wants to know
FORGED: list[tuple[Callable[[Version], None], set[str], str]] = [
    (weights_flipped, {"files", "digest", "bill of materials"}, "model.safetensors"),
    (
        record_edited,
        {"manifest", "digest", "bill of materials", "record in MLflow"}
        | {"metrics in MLflow"},
        "energy",
    ),
    (file_added, {"files", "digest"}, "extra.py"),
    (
        verdict_flipped,
        {"manifest", "digest", "bill of materials", "record in MLflow", "gate", "tags"},
        "passed is True, judged again False",
    ),
    (bill_edited, {"manifest", "digest", "bill of materials"}, "components"),
]


@pytest.mark.parametrize(("tamper", "expected", "named"), FORGED)
def test_what_nobody_signed_is_read_if_the_signature_is_waived(
    settings: params.Params,
    root: Path,
    version: Version,
    tamper: Callable[[Version], None],
    expected: set[str],
    named: str,
) -> None:
    tamper(version)
    found = broken(settings, root, version, waive=["signature", "registration"])
    assert set(found) == expected
    assert named in " ".join(found.values())


def test_nothing_is_read_whose_signature_is_broken(
    settings: params.Params, root: Path, version: Version
) -> None:
    """Each file that a check would parse is garbage that would be told otherwise."""
    for name in ("record.json", "config.json", "bom.cdx.json", "model.safetensors"):
        (version.place / name).write_bytes(b"[" * 100_000)
    result = audit(settings, root, f"{version.name}/{version.number}")
    told = {check.name: check.detail for check in result.checks if check.ok is None}
    assert list(told) == result.unknown == CONTENT
    assert all("the signature does not hold" in detail for detail in told.values())


@pytest.mark.parametrize(
    ("tamper", "check"),
    [
        (weights_flipped, "files: model.safetensors"),
        (published_by_a_foreigner, "signature: model.sig"),
        (name_swapped, "registration: "),
        (registered_again, "registration: "),
    ],
)
def test_no_record_is_followed_that_was_not_signed_for_its_name(
    settings: params.Params,
    root: Path,
    version: Version,
    tamper: Callable[[Version], None],
    check: str,
) -> None:
    tamper(version)
    with pytest.raises(UserError, match=f"its record cannot be followed: {check}"):
        make_again(settings, root, f"{version.name}/{version.number}")


def test_whoever_covers_all_tracks_but_has_no_key_is_found(
    settings: params.Params, root: Path, version: Version
) -> None:
    """Seconds are in the record alone: every place that repeats them is made to fit."""
    edit(
        version.place / "record.json",
        lambda record: record.update(created="2026-11-25T02:15:00+00:00"),
    )
    record = json.loads((version.place / "record.json").read_text())
    (version.place / MANIFEST).unlink()
    write_bom(version.place, Record.model_validate(record), leave_out=(SIGNATURE,))
    new = renew_manifest(version.place)
    moved = version.place.rename(version.place.with_name(new))
    point_to(version, str(moved))
    version.client.set_model_version_tag(version.name, version.number, "digest", new)
    later = {
        "artifact": {"url": str(moved), "digest": new},
        "model_version": version.number,
    }
    version.client.log_text(version.run, json.dumps(record | later), "record.json")
    assert set(broken(settings, root, version)) == {"signature", "registration"}
    unsigned = ["signature", "registration", "report"]
    assert broken(settings, root, version, waive=unsigned) == {}
