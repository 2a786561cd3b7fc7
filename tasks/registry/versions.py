"""The versions of a registered model, and how the registry tells who is champion, since when, by whom and why."""

import re

from pydantic import BaseModel, ConfigDict

from elder import params
from elder.errors import UserError
from tasks.registry.champion import CHAMPION
from tasks.registry.history import Entry
from tasks.registry.mlflow import connect, plain_refusals


class Gone(UserError):
    """The registry does not have the version that is champion by the history."""


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
    return Version(
        version=version,
        url=str(found.source),
        digest=found.tags["digest"],
        gate=found.tags["gate"],
    )


def by_digest(registry: params.Registry) -> dict[str, str]:
    """Return the numbers of all versions of ``registry.name`` by the digest of their files."""
    return {
        tags["digest"]: number for number, tags in _tags(registry).items() if "digest" in tags
    }


def same_model(registry: params.Registry, version: str, found: str | None, wanted: str) -> None:
    """Refuse a version that is another model than the one that the history means by its number.

    Raises:
        UserError: if the two digests differ.
    """
    if found != wanted:
        raise UserError(
            f"the history says that version {version} of {registry.name} is the model {wanted[:12]}..., in the registry"
            f" it is {found[:12] + '...' if found else 'one without a digest'}: use the registry that belongs to this"
            " store, or fill it again as docs/disaster-recovery.md says"
        )


def is_told(registry: params.Registry, entry: Entry) -> bool:
    """Say whether the registry tells this decision as the last one."""
    aliases, tags = _aliases_and_tags(registry)
    return aliases.get(CHAMPION) == entry.version and tags.get(_tag(entry)) == _story(entry)


def tell(registry: params.Registry, log: list[Entry]) -> None:
    """Write the history into the registry: tags on its versions and on the model, and last of all the alias.

    Whoever finds the alias where the history says knows by this order that the tags are there, too. What is there
    already is not written again. A version that was deleted since gets no tags. A tag of another history, one that was
    lost with its store, stays as ``lost-history/...``.

    Args:
        registry: its ``name`` is the model.
        log: all decisions, at least one.

    Raises:
        Gone: it does not have the last of these versions.
        UserError: it cannot be written, or what it calls one of these versions is another model.
    """
    versions = _tags(registry)
    for entry in log:
        if entry.version in versions:
            same_model(
                registry, entry.version, versions[entry.version].get("digest"), entry.digest
            )
    if log[-1].version not in versions:
        raise Gone(
            f"version {log[-1].version} of {registry.name}, champion by the history, is not in the registry: fill it"
            " again as docs/disaster-recovery.md says, or promote another version with --force"
        )
    aliases, told = _aliases_and_tags(registry)
    client, name = connect(registry), registry.name
    with plain_refusals(registry):
        for version, tags in version_tags(log).items():
            there = versions.get(version, {})
            for key, value in tags.items() if version in versions else ():
                if value is None and key in there:
                    client.delete_model_version_tag(name, version, key)
                elif value is not None and there.get(key) != value:
                    client.set_model_version_tag(name, version, key, value)
        for entry in log:
            key, story = _tag(entry), _story(entry)
            if key in told and told[key] != story:
                client.set_registered_model_tag(name, f"lost-{key}", told[key])
            if told.get(key) != story:
                client.set_registered_model_tag(name, key, story)
        if aliases.get(CHAMPION) != log[-1].version:
            client.set_registered_model_alias(name, CHAMPION, log[-1].version)


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


def _tags(registry: params.Registry) -> dict[str, dict[str, str]]:
    """Return the tags of all versions by their numbers."""
    client = connect(registry)
    with plain_refusals(registry):
        found = client.search_model_versions(f"name = '{registry.name}'")
    return {str(version.version): version.tags for version in found}


def _aliases_and_tags(registry: params.Registry) -> tuple[dict[str, str], dict[str, str]]:
    """Return the aliases (version by name) and the tags of the model; none, where there is no such model."""
    from mlflow.exceptions import MlflowException

    client = connect(registry)
    with plain_refusals(registry):
        try:
            model = client.get_registered_model(registry.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}, {}
        return {alias: str(version) for alias, version in model.aliases.items()}, model.tags
