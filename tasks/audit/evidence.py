"""A registered version as an audit finds it: what the registry says, what lies in the store, and what is here."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from elder import params
from elder.errors import UserError
from tasks.provenance.bom import RECORD
from tasks.registry.mlflow import connect, plain_refusals
from tasks.store.manifest import MANIFEST, Files, describe, parse
from tasks.store.open import open_model


class Broken(Exception):
    """Something does not hold; the message names it."""


class Unknown(Exception):
    """Something can neither be confirmed nor refuted here; the message says why."""


@dataclass(frozen=True)
class Evidence:
    """A registered version as it is found.

    Attributes:
        name: registered model.
        version: its number.
        source: URL in the store that the registry gives.
        tags: of the version.
        run: MLflow's run that made it.
        client: MLflow's client.
        folder: all that lies at ``source``, as it lies.
        settings: parameters of whoever audits.
        root: the project's folder.
        public_key: key that must have signed; None: nobody said which.
    """

    name: str
    version: str
    source: str
    tags: dict[str, str]
    run: Any
    client: Any
    folder: Path
    settings: params.Params
    root: Path
    public_key: Path | None

    @cached_property
    def files(self) -> Files:
        """Fingerprint all files but the manifest, as they are."""
        return {path: file for path, file in describe(self.folder).items() if path != MANIFEST}

    @property
    def manifest(self) -> Files:
        """Return the files that the manifest names."""
        path = self.folder / MANIFEST
        if not path.is_file():
            raise Broken(f"{MANIFEST} is missing")
        try:
            return parse(path.read_bytes(), self.source)
        except UserError as error:
            raise Broken(str(error)) from None

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return the content of record.json."""
        try:
            found = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise Broken(f"{RECORD} is missing or not JSON") from None
        if not isinstance(found, dict) or not {
            "run_id",
            "model",
            "rows",
            "gate",
            "lineage",
        } <= set(found):
            raise Broken(f"{RECORD} is no record of a run")
        return found


Check = Callable[[Evidence], str]


def gather(
    settings: params.Params, root: Path, name: str, public_key: Path | None, place: Path
) -> Evidence:
    """Find a version in the registry and what it points to in the store, which may be copied into ``place``."""
    found = re.fullmatch(r"([^/@]+)(?:@([^/@]+)|/(\d+))", name.removeprefix("models:/"))
    if not found:
        raise UserError(
            f"{name!r}: name a registered model as NAME@ALIAS or NAME/VERSION, such as my-model/3"
        )
    model, alias, version = found.groups()
    client = connect(settings.registry)
    with plain_refusals(settings.registry):
        entry = (
            client.get_model_version_by_alias(model, alias)
            if alias
            else client.get_model_version(model, version)
        )
        if not entry.run_id:
            raise UserError(
                f"version {entry.version} of {model} has no MLflow run: elder run registers with one"
            )
        run = client.get_run(entry.run_id)
    store, prefix = open_model(
        str(entry.source), settings.store.endpoint, settings.store.region
    )
    return Evidence(
        name=model,
        version=str(entry.version),
        source=str(entry.source).rstrip("/"),
        tags=dict(entry.tags),
        run=run,
        client=client,
        folder=store.as_it_lies(prefix, place),
        settings=settings,
        root=root,
        public_key=public_key,
    )
