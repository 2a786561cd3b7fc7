"""The versions of a registered model, and how the registry tells who is champion, since when, by whom and why."""

import re

from elder.errors import UserError
from tasks.registry.client import Registry
from tasks.registry.history import Entry, History

CHAMPION = "champion"  # the alias
TOLD = "history/"  # how the model's tags begin that tell a decision


class Gone(UserError):
    """The registry does not have the version that is champion by the history."""


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


def disagreements(registry: Registry, history: History) -> list[str]:
    """Say where the registry tells something that does not follow from the history; nothing, where it is only behind.

    The registry is told the alias first and then the decisions, the oldest first. So it may lack the last decisions,
    and its alias may be that of the last one it tells or of any later one; all else somebody has changed.
    """
    aliases, tags = registry.aliases_and_tags()
    told = _decisions(tags)
    told = {number: told[number] for number in told if number >= history.start}
    chain = [entry for entry in history.entries if entry.number >= history.start]
    faults = _told_otherwise(
        registry.name, told, {entry.number: entry for entry in chain}
    )
    holder, last = aliases.get(CHAMPION), max(told, default=history.start - 1)
    possible: set[str | None] = {
        entry.version for entry in chain if entry.number >= last
    }
    if not told:
        possible |= {chain[0].previous, None} if chain else {holder}
    if holder not in possible and not faults and not _lost(registry, chain):
        wanted = chain[-1].version if chain else "none"
        faults.append(
            f"the registry's alias {CHAMPION} of {registry.name} is at version {holder or 'none'}, by the signed"
            f" history champion is version {wanted}"
        )
    return faults


def last_told(registry: Registry) -> int:
    """Return the number of the last decision that the registry tells, or 0."""
    _, tags = registry.aliases_and_tags()
    return max(_decisions(tags), default=0)


def _decisions(tags: dict[str, str]) -> dict[int, str]:
    """Return the decisions that a model's tags tell, by number."""
    return {
        int(key.removeprefix(TOLD)): story
        for key, story in tags.items()
        if re.fullmatch(rf"{TOLD}\d{{6}}", key)
    }


def _told_otherwise(
    name: str, told: dict[int, str], chain: dict[int, Entry]
) -> list[str]:
    """Say which decisions the registry tells otherwise than the history, or tells alone, or does not tell."""
    faults = []
    for number, story in sorted(told.items()):
        if number not in chain:
            faults.append(
                f"the registry tells of decision {number} on {name} ({story[:200]}), the history in the store does not:"
                " it was cut"
            )
        elif story != _story(chain[number]):
            faults.append(
                f"the registry tells decision {number} on {name} otherwise than the signed history"
            )
    for number in chain:
        if number not in told and number < max(told, default=0):
            faults.append(
                f"the registry does not tell decision {number} on {name} any more"
            )
    return faults


def _lost(registry: Registry, chain: list[Entry]) -> bool:
    """Say whether the registry has lost the champion itself, and its alias with it."""
    return bool(chain) and chain[-1].version not in _tags(registry)


def write_history(registry: Registry, log: list[Entry]) -> None:
    """Write the history into the registry: first the alias, then tags on its versions, last the decisions in order.

    Whoever finds the last decision there knows by this order that the rest is there, too. What is there already is not
    written again. A version that was deleted since gets no tags.

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
    client, name = registry.client, registry.name
    with registry.refusals():
        if aliases.get(CHAMPION) != champion:
            client.set_registered_model_alias(name, CHAMPION, champion)
        for version, tags in version_tags(log).items():
            if version in versions:
                _tag_version(registry, version, versions[version], tags)
        for entry in log:
            if told.get(_tag(entry)) != _story(entry):
                client.set_registered_model_tag(name, _tag(entry), _story(entry))


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
    return f"{TOLD}{entry.number:06d}"


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
