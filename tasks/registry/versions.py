"""The versions of a registered model, and how the registry tells who is champion, since when, by whom and why."""

import re

from pydantic import BaseModel, ConfigDict

from elder.errors import UserError
from tasks.registry.champion import CHAMPION
from tasks.registry.client import Reference, Registry
from tasks.registry.history import Entry


class Gone(UserError):
    """The registry does not have the version that is champion by the history."""


class Version(BaseModel):
    """A registered version: where its files lie, their digest, and what the gate said of it."""

    model_config = ConfigDict(frozen=True)
    version: str
    url: str
    digest: str
    gate: str


def find_version(registry: Registry, version: str) -> Version:
    """Look a version of the registered model up.

    Raises:
        UserError: there is none, or it was not registered by this project.
    """
    if not re.fullmatch(r"[1-9]\d*", version):
        raise UserError(f"version {version!r}: name a number, such as 3")
    entry = registry.look_up(Reference(registry.name, None, version))
    if not {"digest", "gate"} <= set(entry.tags):
        raise UserError(
            f"version {version} of {registry.name} has no tags 'digest' and 'gate': register it with elder run"
        )
    return Version(
        version=version,
        url=str(entry.source),
        digest=entry.tags["digest"],
        gate=entry.tags["gate"],
    )


def by_digest(registry: Registry) -> dict[str, str]:
    """Return the numbers of all versions of the registered model by the digest of their files."""
    numbers = {}
    for number, tags in _tags(registry).items():
        if "digest" in tags:
            numbers[tags["digest"]] = number
    return numbers


def same_model(
    registry: Registry, version: str, digest: str | None, wanted: str
) -> None:
    """Refuse a version that is another model than the one that the history means by its number.

    Raises:
        UserError: if the two digests differ.
    """
    if digest == wanted:
        return
    there = f"{digest[:12]}..." if digest else "one without a digest"
    raise UserError(
        f"the history says that version {version} of {registry.name} is the model {wanted[:12]}..., in the registry"
        f" it is {there}: use the registry that belongs to this store, or fill it again as docs/disaster-recovery.md"
        " says"
    )


def is_told(registry: Registry, entry: Entry) -> bool:
    """Say whether the registry tells this decision as the last one."""
    aliases, tags = registry.aliases_and_tags()
    return aliases.get(CHAMPION) == entry.version and tags.get(_tag(entry)) == _story(
        entry
    )


def write_history(registry: Registry, log: list[Entry]) -> None:
    """Write the history into the registry: tags on its versions and on the model, and last of all the alias.

    Whoever finds the alias where the history says knows by this order that the tags are there, too. What is there
    already is not written again. A version that was deleted since gets no tags. A tag of another history, one that was
    lost with its store, stays as ``lost-history/...``.

    Args:
        registry: of the model.
        log: all decisions, at least one.

    Raises:
        Gone: it does not have the last of these versions.
        UserError: it cannot be written, or what it calls one of these versions is another model.
    """
    versions, champion = _tags(registry), log[-1].version
    for entry in log:
        if entry.version in versions:
            digest = versions[entry.version].get("digest")
            same_model(registry, entry.version, digest, entry.digest)
    if champion not in versions:
        raise Gone(
            f"version {champion} of {registry.name}, champion by the history, is not in the registry: fill it"
            " again as docs/disaster-recovery.md says, or promote another version with --force"
        )
    aliases, told = registry.aliases_and_tags()
    with registry.refusals():
        for version, tags in version_tags(log).items():
            if version in versions:
                _tag_version(registry, version, versions[version], tags)
        for entry in log:
            _tag_model(registry, told, entry)
        if aliases.get(CHAMPION) != champion:
            registry.client.set_registered_model_alias(
                registry.name, CHAMPION, champion
            )


def _tag_version(
    registry: Registry,
    version: str,
    present: dict[str, str],
    wanted: dict[str, str | None],
) -> None:
    """Bring the tags of a version to what they should be; None: the tag must not be there."""
    client, name = registry.client, registry.name
    for key, value in wanted.items():
        if value is None and key in present:
            client.delete_model_version_tag(name, version, key)
        elif value is not None and present.get(key) != value:
            client.set_model_version_tag(name, version, key, value)


def _tag_model(registry: Registry, told: dict[str, str], entry: Entry) -> None:
    """Tell one decision in a tag of the model; what another history says there is kept under another key."""
    key, story = _tag(entry), _story(entry)
    before = told.get(key)
    if before == story:
        return
    if before is not None:
        registry.client.set_registered_model_tag(registry.name, f"lost-{key}", before)
    registry.client.set_registered_model_tag(registry.name, key, story)


def version_tags(log: list[Entry]) -> dict[str, dict[str, str | None]]:
    """Return the tags of each version that was ever champion, after all decisions; None: the tag must not be there."""
    tags: dict[str, dict[str, str | None]] = {}
    for entry in log:
        if entry.previous:
            tags.setdefault(entry.previous, {}).update(
                archived_at=entry.at, archived_for=entry.version
            )
        tags.setdefault(entry.version, {}).update(
            promoted_at=entry.at,
            promoted_by=entry.by,
            promoted_reason=entry.reason
            if entry.action == "promote"
            else f"rollback: {entry.reason}",
            promoted_from=entry.previous or "none",
            archived_at=None,
            archived_for=None,
        )
    return tags


def _tag(entry: Entry) -> str:
    return f"history/{entry.number:06d}"


def _story(entry: Entry) -> str:
    change = (
        f"from version {entry.previous} to {entry.version}"
        if entry.previous
        else f"to version {entry.version}"
    )
    return f"{entry.action} {change} by {entry.by} at {entry.at}: {entry.reason}"


def _tags(registry: Registry) -> dict[str, dict[str, str]]:
    """Return the tags of all versions by their numbers."""
    with registry.refusals():
        entries = registry.client.search_model_versions(f"name = '{registry.name}'")
    return {str(entry.version): entry.tags for entry in entries}
