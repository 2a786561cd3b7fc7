"""A registered version as an audit finds it: what the registry says, what lies in the store, and what is here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from elder import params
from elder.errors import UserError
from elder.files import read_json, read_small
from elder.record import Json, Record, read_record
from tasks.provenance.bom import RECORD
from tasks.provenance.bundle import Signed
from tasks.provenance.signing import SIGNATURE, check_files
from tasks.provenance.trust import Trust
from tasks.registry.client import Registry, parse_reference
from tasks.store.manifest import MANIFEST, MLFLOW_NOTE, Files, describe, parse
from tasks.store.open import open_model

if TYPE_CHECKING:
    from mlflow.entities import Run


class Broken(Exception):
    """Something does not hold; the message names it."""


class Unknown(Exception):
    """Something can neither be confirmed nor refuted here; the message says why."""


@dataclass(frozen=True)
class Evidence:
    """A registered version as it is found. Nothing in its folder is parsed unless its signature holds, or is waived.

    Attributes:
        name: registered model.
        version: its number.
        source: URL in the store that the registry gives.
        tags: of the version.
        run: MLflow's run that made it.
        registry: that it was found in.
        folder: all that lies at ``source``, as it lies, but for what is astray.
        astray: names there that no stored model has, and what is wrong with each.
        settings: parameters of whoever audits.
        root: the project's folder.
        trust: who must have signed.
        waived: checks that may fail.
    """

    name: str
    version: str
    source: str
    tags: dict[str, str]
    run: "Run"
    registry: Registry
    folder: Path
    astray: dict[str, str]
    settings: params.Params
    root: Path
    trust: Trust
    waived: frozenset[str] = frozenset()

    @cached_property
    def files(self) -> Files:
        """Fingerprint all files but the manifest and MLflow's note, as they are."""
        return {
            path: file
            for path, file in describe(self.folder).items()
            if path not in (MANIFEST, MLFLOW_NOTE)
        }

    @property
    def manifest(self) -> Files:
        """Return the files that the manifest names."""
        path = self.folder / MANIFEST
        if not path.is_file():
            raise Broken(f"{MANIFEST} is missing")
        try:
            return parse(small_file(path), self.source)
        except UserError as error:
            raise Broken(str(error)) from None

    @cached_property
    def signature(self) -> Signed | UserError:
        """Return the signature over the files as they are, or why there is none that holds."""
        path = self.folder / SIGNATURE
        try:
            data = small_file(path) if path.is_file() else None
            return check_files(data, self.files, self.trust)
        except UserError as error:
            return error

    def content(self) -> Path:
        """Return the folder for what is to be parsed.

        Raises:
            Unknown: the signature does not hold, so that anybody may have written what lies there.
        """
        if isinstance(self.signature, UserError) and "signature" not in self.waived:
            raise Unknown("the signature does not hold, so nothing of this is read")
        return self.folder

    @cached_property
    def record_tree(self) -> Json:
        """Return the content of record.json as it is written, which may be any JSON."""
        path = self.content() / RECORD
        if not path.is_file():
            raise Broken(f"{RECORD} is missing")
        try:
            return read_json(path, RECORD)
        except UserError as error:
            raise Broken(str(error)) from None

    @cached_property
    def record(self) -> Record:
        """Return the record, which is checked to be one."""
        try:
            return read_record(self.record_tree, RECORD)
        except UserError as error:
            raise Broken(str(error)) from None

    def attached(self, name: str) -> Json:
        """Return a JSON file that is attached to the MLflow run."""
        return self.registry.attached_json(self.run.info.run_id, name)


Check = Callable[[Evidence], str]


def gather(
    settings: params.Params,
    root: Path,
    name: str,
    trust: Trust,
    place: Path,
    waived: frozenset[str] = frozenset(),
) -> Evidence:
    """Find a version in the registry and what it points to in the store.

    Args:
        settings: registry and store.
        root: the project's folder.
        name: ``NAME@ALIAS`` or ``NAME/VERSION``.
        trust: who must have signed.
        place: folder that what lies in the store may be copied into.
        waived: checks that may fail.

    Raises:
        UserError: the name means nothing, there is no such version, or registry or store cannot be read.
    """
    wanted = parse_reference(name)
    if wanted is None:
        raise UserError(
            f"{name!r}: name a registered model as NAME@ALIAS or NAME/VERSION, such as my-model/3"
        )
    registry = Registry(settings.registry)
    entry = registry.look_up(wanted)
    if not entry.run_id:
        raise UserError(
            f"version {entry.version} of {wanted.name} has no MLflow run: elder run registers with one"
        )
    run = registry.run(entry.run_id)
    source = str(entry.source)
    store, prefix = open_model(source, settings.store.endpoint, settings.store.region)
    lying = store.as_it_lies(prefix, place)
    return Evidence(
        name=wanted.name,
        version=str(entry.version),
        source=source.rstrip("/"),
        tags=dict(entry.tags),
        run=run,
        registry=registry,
        folder=lying.folder,
        astray=lying.astray,
        settings=settings,
        root=root,
        trust=trust,
        waived=waived,
    )


def small_file(path: Path) -> bytes:
    """Return all bytes of a file that is not large in any honest model.

    Raises:
        UserError: it is.
    """
    with path.open("rb") as handle:
        return read_small(handle, path.name)
