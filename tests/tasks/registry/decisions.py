"""What tests of promotion do: register versions, decide on them, look at them, and damage them."""

from pathlib import Path

from elder import params
from tasks.provenance.identity import Identity
from tasks.registry.client import Registry
from tasks.registry.history import Entry
from tasks.registry.promotion import (
    carry_out,
    history_of,
    plan_promotion,
    plan_rollback,
)
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
    settings: params.Params, root: Path, version: str, force: bool = False
) -> Entry:
    plan = plan_promotion(settings, root, settings.registry.name, version, force)
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
