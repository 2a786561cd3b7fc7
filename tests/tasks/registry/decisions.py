"""What tests of promotion do: register versions, decide on them, look at them, and damage them."""

from pathlib import Path
from typing import Any

from elder import params
from tasks.provenance.identity import Identity
from tasks.provenance.keys import signer_of
from tasks.provenance.trust import trust_of
from tasks.registry.client import Registry
from tasks.registry.history import Entry, append, read_history
from tasks.registry.promotion import (
    carry_out,
    history_of,
    plan_promotion,
    plan_rollback,
)
from tasks.store.open import open_store
from tests.tasks.registered import record, register

ANNA = Identity("anna@host", "operating system")
BEN = Identity("ben@host", "operating system")
OWN_TAGS = ("digest", "gate", "registration")


def add(
    settings: params.Params,
    root: Path,
    number: int,
    perplexity: float = 20.0,
    **more: str,
) -> str:
    """Register version ``number``."""
    gate = more.pop("gate", "passed")
    content = record(perplexity, gate=gate, **more)
    version, _ = register(settings, root / f"model {number}", content, gate)
    assert version == str(number)
    return version


def promote(
    settings: params.Params,
    root: Path,
    version: str,
    force: bool = False,
    accept_history: bool = False,
) -> Entry:
    name = settings.registry.name
    plan = plan_promotion(settings, root, name, version, force, accept_history)
    return carry_out(settings, root, plan, ANNA, f"version {version} it is")


def decisions(settings: params.Params, root: Path) -> tuple[list[Entry], list[str]]:
    """Return the history that can be believed, and what is wrong."""
    history, faults = history_of(settings, root, settings.registry.name)
    return history.entries, faults


def roll_back(settings: params.Params, root: Path) -> Entry:
    return carry_out(
        settings,
        root,
        plan_rollback(settings, root, settings.registry.name),
        BEN,
        "it failed",
    )


def champion(settings: params.Params) -> str | None:
    holder = Registry(settings.registry).holder("champion")
    return holder and holder[0]


def tags(settings: params.Params, version: str) -> dict[str, str]:
    found = (
        Registry(settings.registry)
        .client.get_model_version(settings.registry.name, version)
        .tags
    )
    return {key: value for key, value in found.items() if key not in OWN_TAGS}


def damage(settings: params.Params, digest: str) -> None:
    """Flip a byte of stored weights."""
    path = (
        Path(settings.store.url)
        / "models"
        / settings.registry.name
        / digest
        / "model.safetensors"
    )
    path.write_bytes(b"W" + path.read_bytes()[1:])


def digest_of(settings: params.Params, version: str) -> str:
    """Return the digest of a version's files, as the registry tells it."""
    client = Registry(settings.registry).client
    return client.get_model_version(settings.registry.name, version).tags["digest"]


def history_folder(settings: params.Params) -> Path:
    return Path(settings.store.url) / "history" / settings.registry.name


def write(settings: params.Params, root: Path, **changes: Any) -> None:
    """Add a signed entry that no check stood before, like the last one but for these changes."""
    store = open_store(settings.store.url)
    trust = trust_of(settings.signing, root)
    history = read_history(store, settings.registry.name, trust)
    like = {
        "action": "promote",
        "version": "1",
        "previous": None,
        "by": "anna@host",
        "vouched_by": "operating system",
        "at": "2026-11-24T02:15:00.000+00:00",
        "reason": "better",
        "compared": "",
    }
    if history.entries:
        like = history.entries[-1].model_dump(exclude={"signed_by", "sha256"})
    own = {"number": len(history.files) + 1, "before": history.head}
    entry = Entry.model_validate(like | own | changes)
    signer = signer_of(settings.signing, root, "decision")
    assert append(store, settings.registry.name, entry, signer)
