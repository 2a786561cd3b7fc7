"""The versions of a registered model, and how the registry tells who is champion, since when, by whom and why."""

import re

from pydantic import BaseModel, ConfigDict

from elder import params
from elder.errors import UserError
from tasks.champion import CHAMPION
from tasks.history import Entry
from tasks.registry import connect, plain_refusals


class Version(BaseModel):
    """A registered version: where its files lie, their digest, and what the gate said of it."""

    model_config = ConfigDict(frozen=True)
    version: str
    url: str
    digest: str
    gate: str


def find_version(registry: params.Registry, version: str) -> Version:
    """Look a version of ``registry.name`` up.

    Raises:
        UserError: there is none, or it was not registered by this project.
    """
    if not re.fullmatch(r"[1-9]\d*", version):
        raise UserError(f"version {version!r}: name a number, such as 3")
    client = connect(registry)
    with plain_refusals(registry):
        found = client.get_model_version(registry.name, version)
    if not {"digest", "gate"} <= set(found.tags):
        raise UserError(
            f"version {version} of {registry.name} has no tags 'digest' and 'gate': register it with elder run"
        )
    return Version(version=version, url=str(found.source), digest=found.tags["digest"], gate=found.tags["gate"])


def tell(registry: params.Registry, entry: Entry) -> None:
    """Write a decision into the registry: tags on the model and on both versions, and last of all the alias.

    Whoever finds the alias where the history says knows by this order that the tags are there, too. All of it can be
    repeated.

    Raises:
        UserError: the registry cannot be written, or what it calls this version is another model.
    """
    found = find_version(registry, entry.version)
    if found.digest != entry.digest:
        raise UserError(
            f"the history says that version {entry.version} of {registry.name} is the model {entry.digest[:12]}..., in"
            f" the registry it is {found.digest[:12]}...: use the registry that belongs to this store"
        )
    client, name = connect(registry), registry.name
    change = f"from version {entry.previous} to {entry.version}" if entry.previous else f"to version {entry.version}"
    promoted = {
        "promoted_at": entry.at,
        "promoted_by": entry.by,
        "promoted_reason": entry.reason if entry.action == "promote" else f"rollback: {entry.reason}",
        "promoted_from": entry.previous or "none",
    }
    with plain_refusals(registry):
        story = f"{entry.action} {change} by {entry.by} at {entry.at}: {entry.reason}"
        client.set_registered_model_tag(name, f"history/{entry.number:06d}", story)
        if entry.previous:
            client.set_model_version_tag(name, entry.previous, "archived_at", entry.at)
            client.set_model_version_tag(name, entry.previous, "archived_for", entry.version)
        for key, value in promoted.items():
            client.set_model_version_tag(name, entry.version, key, value)
        for key in ("archived_at", "archived_for"):  # of a version that comes back
            client.delete_model_version_tag(name, entry.version, key)
        client.set_registered_model_alias(name, CHAMPION, entry.version)
