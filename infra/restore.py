"""Fill a registry that was lost from the store, where every model carries its record and the history of champions.

    .venv/bin/python infra/restore.py NAME [--folder runs/ID/NAME]... [--set section.key=value]...

Give it in the project's folder, with the registry's address of now in params.yaml or ELDER_SET. Models are registered
in the order in which they were made, so that they get the numbers that they had. What is there already stays.

For a lost store, ``--folder`` names model folders that runs have left on a machine: they are published first, to the
very place where they were, since that follows from their bytes.
"""

import json
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from elder.cli import Overrides, read_params
from elder.errors import UserError
from elder.params import Params
from elder.report import write_report
from flows.cli import prepare_environment
from tasks import registry
from tasks.bom import RECORD
from tasks.manifest import MANIFEST, digest
from tasks.promotion import history
from tasks.store import Published, Store, configured_store


def restore(settings: Params, root: Path) -> list[str]:
    """Register every whole model of ``registry.name``, then repeat what the history says; returns a line for each."""
    name, store, lines = settings.registry.name, configured_store(settings.store, root), []
    prefixes = [
        f"models/{name}/{path.partition('/')[0]}" for path in store.paths(f"models/{name}") if path.endswith(MANIFEST)
    ]
    records = {prefix: json.loads(store.read(f"{prefix}/{RECORD}") or b"{}") for prefix in prefixes}
    whole = [prefix for prefix in prefixes if records[prefix]]
    for prefix in sorted(whole, key=lambda prefix: datetime.fromisoformat(records[prefix]["created"])):
        version = _register(settings, store, prefix, records[prefix])
        lines.append(
            f"run {records[prefix]['run_id']}: " + (f"version {version}" if version else "refused by the gate")
        )
    lines += [f"{prefix} has no {RECORD}: left out" for prefix in prefixes if prefix not in whole]
    log, fault = history(settings, root, name)
    lines.append(fault or (f"champion: version {log[-1].version}" if log else "there was no champion"))
    return lines


def _register(settings: Params, store: Store, prefix: str, record: dict) -> str | None:
    files = store.manifest(prefix)
    published = Published(url=f"{store.url}/{prefix}", digest=digest(files), files=files, uploaded_bytes=0)
    run = registry.start_run(settings.registry, record["run_id"])
    registry.log_record(settings.registry, run, record)
    version = registry.register(settings.registry, run, record, published)
    told = record | {"artifact": published.model_dump(exclude={"uploaded_bytes"}), "model_version": version}
    with tempfile.TemporaryDirectory() as folder:
        write_report(told, Path(folder) / "report.html")
        registry.log_files(settings.registry, run, told, Path(folder) / "report.html")
    registry.end_run(settings.registry, run)
    return version


def main(
    name: Annotated[str, typer.Argument(help="The registered model's name.")],
    folder: Annotated[list[Path] | None, typer.Option(help="Model folder to publish first; repeatable.")] = None,
    overrides: Overrides = None,
) -> None:
    """Fill a registry that was lost from the store, and a store from the folders of runs."""
    prepare_environment()
    settings = read_params(None, [*(overrides or []), f"registry.name={name}"], {})
    try:
        for found in folder or []:
            print(f"{found}: {configured_store(settings.store, Path.cwd()).publish(found, name).url}")
        print("\n".join(restore(settings, Path.cwd())))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    typer.run(main)
