"""Fill a registry that was lost from the store, where every model carries its record and the history of champions.

    .venv/bin/python infra/restore.py NAME [--folder runs/ID/model]... [--set section.key=value]...

Give it in the project's folder, with the registry's address of now in params.yaml or ELDER_SET. Versions get the
numbers that the history knows them by, the others those between, in the order in which they were made. What is there
already stays. Exit status 1 says that the champion is not among the whole models of the store.

For a lost store, ``--folder`` names model folders that runs have left on a machine: they are published first, to the
very place where they were, since that follows from their bytes.
"""

import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from elder.cli.options import Overrides
from elder.cli.output import one_line, print_any_character, refuse
from elder.errors import UserError
from elder.files import parse_json
from elder.names import registered_name_fault, shown
from elder.params import Params
from elder.record import Record, read_record
from elder.report.html import write_report
from elder.settings import read_params
from flows.environment import prepare_environment
from tasks.errors import Unreachable, plain_errors
from tasks.provenance.bom import RECORD
from tasks.provenance.bundle import BadSignature
from tasks.provenance.keys import Signer, signer_of
from tasks.provenance.signing import SIGNATURE, check_files
from tasks.provenance.trust import Trust, trust_of
from tasks.registry.attached import TAG as ATTACHED
from tasks.registry.attached import check_attached
from tasks.registry.client import Reference, Registry
from tasks.registry.history import Entry, read_history
from tasks.registry.metrics import created_at
from tasks.registry.promotion import history_of
from tasks.registry.registration import TAG, Registration, check_registration
from tasks.registry.verified import name_of, signed_record
from tasks.registry.versions import CHAMPION, by_digest, last_told, same_model
from tasks.store.base import Published, Store
from tasks.store.manifest import MANIFEST, describe
from tasks.store.open import configured_store, history_store

DIGEST = re.compile("[0-9a-f]{64}")


def publish(folder: Path, settings: Params, root: Path) -> str:
    """Publish a model folder that a run left, as ``registry.name``, if it is what was signed; returns its URL.

    Raises:
        UserError: it is no such folder, of another name, or nobody who is trusted has signed it as it is, or the store
            refuses.
    """
    name, files = settings.registry.name, describe(folder)
    if not {RECORD, SIGNATURE} <= set(files):
        raise UserError(
            f"{folder} is not the model of a run, which has {RECORD} and {SIGNATURE} in it: name a folder like"
            " runs/ID/model"
        )
    with plain_errors(folder):
        signature, record = (
            (folder / SIGNATURE).read_bytes(),
            (folder / RECORD).read_bytes(),
        )
    try:  # nothing is parsed before
        check_files(signature, files, trust_of(settings.signing, root))
    except BadSignature as error:
        raise UserError(
            f"{folder} is not what a run left: {error}; name another folder"
        ) from None
    what = f"{folder / RECORD}"
    own_name = name_of(read_record(parse_json(record, what), what))
    if own_name != name:
        raise UserError(
            f"{folder} is a model of {own_name!r}: give that name instead of {name!r}"
        )
    return configured_store(settings.store, root).publish(folder, name).url


def restore(settings: Params, root: Path) -> tuple[list[str], str]:
    """Register every whole model of ``registry.name``, then tell the registry the whole history.

    Returns:
        A line for each model and for the history, and what kept the registry from following it, or the champion from
        being whole, or ''.

    Raises:
        UserError: there is no such model, its history is damaged, the registry has given its numbers to other models,
            or registry or store cannot be used.
    """
    name, store = settings.registry.name, configured_store(settings.store, root)
    signer = signer_of(settings.signing, root, "model")
    trust = trust_of(settings.signing, root)
    decisions = read_history(history_store(settings.store, root), name, trust)
    if decisions.faults:
        raise UserError(
            f"{'; '.join(decisions.faults)}: bring the history of {name} back first, from a backup"
        )
    log = decisions.entries
    records, lines = _records(name, store, trust)
    if not (records or lines or log):
        others = _names(store)
        raise UserError(
            f"{store.url} holds no model {name!r}: it has {', '.join(others) or 'no models at all'}"
        )
    registry = Registry(settings.registry)
    registry.check_store(settings.store)
    versions, more = _versions(registry, log, trust)
    lines += more
    _same_numbers(registry, by_digest(registry), log)
    passed = [digest for digest, record in records.items() if not record.gate.refused]
    wanted = numbers(passed, log)
    for digest in sorted(records, key=lambda digest: wanted.get(digest, 0)):
        url = f"{store.url}/models/{name}/{digest}"
        model = StoredModel(
            record=records[digest],
            published=Published(
                url=url, digest=digest, files=store.manifest(url), uploaded_bytes=0
            ),
            version=versions.get(digest),
            number=wanted.get(digest, 0),
        )
        version = _fill(registry, model, signer, trust)
        outcome = f"version {version}" if version else "refused by the gate"
        lines.append(f"run {model.record.run_id}: {outcome}")
    return _follow(settings, root, registry, records, lines)


def _follow(
    settings: Params,
    root: Path,
    registry: Registry,
    records: Collection[str],
    lines: list[str],
) -> tuple[list[str], str]:
    """Tell the registry the whole history; returns what `restore` does, given the digests of the whole models."""
    decisions, faults = history_of(settings, root, registry.name, whole=True)
    log, fault = decisions.entries, "; ".join(faults)
    if fault:
        fault = f"the registry was not brought in line with the history: {fault}"
    elif log and log[-1].digest not in records:
        fault = (
            f"the champion, version {log[-1].version}, does not lie whole in the store: bring its model back with"
            " --folder runs/ID/model, the folder of its run, go back with elder rollback, or promote another version"
        )
    return [*lines, _ending(registry, log)], fault


def _names(store: Store) -> list[str]:
    """Return the models that a store has, by what their folders are called; other names are none."""
    names = {path.partition("/")[0] for path in store.paths("models")}
    return sorted(name for name in names if registered_name_fault(name) is None)


def numbers(digests: list[str], log: list[Entry]) -> dict[str, int]:
    """Return the number that each version should get.

    Args:
        digests: of the versions, in the order in which they were made.
        log: the history, which knows the numbers of those that were champion once.

    Returns:
        By digest: the number in the history, or else the next that is free after those of versions made before.
    """
    known = {entry.digest: int(entry.version) for entry in log}
    given, last = {}, 0
    for digest in digests:
        if digest not in known:
            last += 1
            while last in known.values():
                last += 1
        given[digest] = known.get(digest, last)
        last = max(last, given[digest])
    return given


@dataclass(frozen=True)
class StoredModel:
    """A model in the store, and what the registry has of it.

    Attributes:
        record: that lies beside its weights.
        published: where it lies.
        version: its number in the registry, or None.
        number: that it should get; 0: none, the gate refused it.
    """

    record: Record
    published: Published
    version: str | None
    number: int


def _same_numbers(
    registry: Registry, versions: dict[str, str], log: list[Entry]
) -> None:
    """Refuse a registry that has given a number of the history to another model."""
    digests = {version: digest for digest, version in versions.items()}
    for entry in log:
        there = digests.get(entry.version, entry.digest)
        same_model(registry, entry.version, there, entry.digest)


def _versions(
    registry: Registry, log: list[Entry], trust: Trust
) -> tuple[dict[str, str], list[str]]:
    """Return the number of the version that a model has, by its digest, and a line for each other that claims it.

    Whoever may write to the registry can register an old model again: it is the version that the history names, or
    whose registration is signed, or else the first; the others stay unsigned, so that nothing believes them.
    """
    decided = {entry.digest: entry.version for entry in log}
    with registry.refusals():
        found = registry.client.search_model_versions(f"name = '{registry.name}'")
    claims: dict[str, list[str]] = {}
    signed: dict[str, str] = {}
    for entry in sorted(found, key=lambda one: int(one.version)):
        digest = entry.tags.get("digest")
        if digest is None:
            continue
        number = str(entry.version)
        claims.setdefault(digest, []).append(number)
        if digest not in signed and _holds(registry.name, number, entry.tags, trust):
            signed[digest] = number
    chosen, lines = {}, []
    for digest, numbers_of_it in claims.items():
        chosen[digest] = signed.get(digest, numbers_of_it[0])
        if decided.get(digest) in numbers_of_it:
            chosen[digest] = decided[digest]
        for other in numbers_of_it:
            if other != chosen[digest]:
                lines.append(
                    f"version {other}: left as it is, the model that it names is version {chosen[digest]}"
                )
    return chosen, lines


def _holds(name: str, version: str, tags: dict[str, str], trust: Trust) -> bool:
    """Say whether a version's registration is signed, as what the version's other tags say."""
    wanted = Registration(
        name=name,
        version=version,
        digest=tags.get("digest", ""),
        run_id=tags.get("run_id", ""),
        at="",
    )
    try:
        check_registration(tags.get(TAG), wanted, trust)
    except BadSignature:
        return False
    return True


def _records(
    name: str, store: Store, trust: Trust
) -> tuple[dict[str, Record], list[str]]:
    """Return the signed records of all whole models by digest, the oldest first, and a line for each other model."""
    folder = f"models/{name}"
    records: dict[str, Record] = {}
    lines, tree = [], store.listing(folder)
    spoilt = set()
    for path, what in sorted(tree.odd.items()):
        lines.append(f"{folder}: {shown(path)} {what}: its model is left out")
        spoilt.add(path.partition("/")[0])
    for path in sorted(tree.sizes):
        digest, _, rest = path.partition("/")
        if rest != MANIFEST or digest in spoilt:
            continue
        if not DIGEST.fullmatch(digest):
            lines.append(
                f"{folder}: {shown(path)} left out, it is in no place of a model"
            )
            continue
        try:
            records[digest] = _believed(name, store, f"{folder}/{digest}", trust)
        except Unreachable:
            raise
        except UserError as error:
            lines.append(f"{folder}/{digest}: left out, {error}")
    by_age = sorted(records, key=lambda digest: created_at(records[digest]))
    return {digest: records[digest] for digest in by_age}, lines


def _believed(name: str, store: Store, prefix: str, trust: Trust) -> Record:
    """Return the record of a model whose bytes are those that somebody who is trusted has signed, under this name.

    Raises:
        UserError: if they are not.
    """
    record, _, _ = signed_record(store, prefix, trust)
    if name_of(record) != name:
        raise UserError(f"it was signed as a model of {name_of(record)!r}")
    faults = store.verify(prefix)
    if faults:
        raise UserError("; ".join(faults))
    return record


def _fill(
    registry: Registry, model: StoredModel, signer: Signer, trust: Trust
) -> str | None:
    """Record a run where MLflow does not know it, and register its model where it is not; returns the version."""
    record = model.record
    run, status = registry.find_run(record.run_id) or (None, None)
    at = None if run else created_at(record)
    if run is None or status != "FINISHED":
        run = registry.start_run(record.run_id, at=at)
        registry.log_record(run, record)
    version = model.version or _register(registry, run, model, signer)
    if version is not None:
        digest = model.published.digest
        tags = registry.look_up(Reference(registry.name, None, version)).tags
        if TAG in tags and not _holds(registry.name, version, tags, trust):
            with registry.refusals():
                registry.client.delete_model_version_tag(registry.name, version, TAG)
        registry.sign_version(version, digest, record.run_id, signer)
    signed = _attached_are_signed(registry, run, record.run_id, trust)
    if not signed or RECORD not in registry.attached(run):
        artifact = model.published.model_dump(exclude={"uploaded_bytes"})
        whole = record.model_copy(
            update={"artifact": artifact, "model_version": version}
        )
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.html"
            write_report(whole, report)
            registry.log_files(run, whole, report, signer)
    if status != "FINISHED":
        registry.end_run(run, at=at)
    return version


def _attached_are_signed(
    registry: Registry, run: str, run_id: str, trust: Trust
) -> bool:
    """Say whether the list of what is attached to an MLflow run is signed."""
    try:
        check_attached(registry.run(run).data.tags.get(ATTACHED), run_id, trust)
    except BadSignature:
        return False
    return True


def _register(
    registry: Registry, run: str, model: StoredModel, signer: Signer
) -> str | None:
    """Register a model under its number; a number below it, whose model is gone, stays empty, as MLflow reuses none."""
    record, published = model.record, model.published
    version = registry.register_version(run, record, published, signer)
    while version is not None and int(version) < model.number:
        registry.delete_version(version)
        version = registry.register_version(run, record, published, signer)
    return version


def _ending(registry: Registry, log: list[Entry]) -> str:
    """Say what is known of the champion."""
    name, holder = registry.name, registry.holder(CHAMPION)
    if log:
        return f"champion: version {log[-1].version}, by decision {log[-1].number} of the history"
    if holder:
        again = f"{holder[0]}{' --accept-history' if last_told(registry) else ''}"
        return (
            f"champion: version {holder[0]}, by the registry alone: the store has no history of {name};"
            f" elder promote {name} {again} begins a new one"
        )
    return "champion: none, nothing was ever promoted"


def main(
    name: Annotated[str, typer.Argument(help="The registered model's name.")],
    folder: Annotated[
        list[Path] | None,
        typer.Option(help="Model folder to publish first; repeatable."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Fill a registry that was lost from the store, and a store from the folders of runs."""
    print_any_character()
    prepare_environment()
    try:
        settings = read_params(None, overrides, {"registry.name": name})
        for found in folder or []:
            print(one_line(f"{found}: {publish(found, settings, Path.cwd())}"))
        lines, fault = restore(settings, Path.cwd())
    except UserError as error:
        refuse(f"error: {error}", 2)
    print("\n".join(map(one_line, lines)))
    if fault:
        refuse(fault, 1)


if __name__ == "__main__":
    typer.run(main)
