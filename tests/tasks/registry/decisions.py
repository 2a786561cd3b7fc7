"""What tests of promotion do: register versions, decide on them, look at them, and damage them."""

from pathlib import Path

from elder import params
from tasks.registry.client import Registry
from tasks.registry.history import Entry
from tasks.registry.promotion import carry_out, plan_promotion, plan_rollback
from tests.tasks.registered import record, register


def add(
    settings: params.Params,
    root: Path,
    number: int,
    perplexity: float = 20.0,
    **more: str,
) -> str:
    """Register version ``number``."""
    gate = more.pop("gate", "passed")
    version, _ = register(
        settings, root / f"model {number}", record(perplexity, **more), gate
    )
    assert version == str(number)
    return version


def promote(
    settings: params.Params, root: Path, version: str, force: bool = False
) -> Entry:
    plan = plan_promotion(settings, root, settings.registry.name, version, force)
    return carry_out(settings, root, plan, "anna@host", f"version {version} it is")


def roll_back(settings: params.Params, root: Path) -> Entry:
    return carry_out(
        settings,
        root,
        plan_rollback(settings, root, settings.registry.name),
        "ben@host",
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
    return {key: value for key, value in found.items() if key not in ("digest", "gate")}


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
