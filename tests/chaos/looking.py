"""What readers see of a world: finished things, and whether any of them is not whole."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUTPUT = Path("out")  # of `elder compress`


@dataclass
class State:
    """What is there to be seen.

    Attributes:
        things: finished things by a name that does not depend on time or chance, with what they are.
        exact: the same things, with digests that no later attempt may change.
        faults: what can be seen and is not whole.
    """

    things: dict[str, str] = field(default_factory=dict)
    exact: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, what: str, exact: str = "") -> None:
        """Add a finished thing."""
        self.things[name] = what
        self.exact[name] = exact or what


def look() -> State:
    """Look at all that lies in this folder and in its services, as readers do."""
    from elder.settings import read_params

    state = State()
    _look_at_output(state)
    if not Path("dvc.yaml").exists():
        return state
    settings = read_params(Path("params.yaml"), None, {}, None)
    for check in (_look_at_store, _look_at_registry, _look_at_history):
        check(state, settings)
    _look_at_runs(state)
    return state


def _look_at_output(state: State) -> None:
    """Look at the model folder that `elder compress` makes."""
    from elder.model.save import weights_file_digest

    if not OUTPUT.exists():
        return
    try:
        record = json.loads((OUTPUT / "elder.json").read_text())
        digest = weights_file_digest(OUTPUT)
    except (OSError, ValueError) as error:
        state.faults.append(f"the output is not whole: {error}")
        return
    if digest != record["sha256"]:
        state.faults.append("the output's weights are not those of its record")
    for name in ("config.json", "tokenizer.json", "README.md"):
        if not (OUTPUT / name).is_file():
            state.faults.append(f"the output lacks {name}")
    state.add("output", f"without layers {record['removed']}, weights {digest}")


def _look_at_store(state: State, settings: Any) -> None:
    from tasks.store.open import configured_store

    store = configured_store(settings.store, Path.cwd())
    prefix = f"models/{settings.registry.name}"
    digests = sorted(
        path.removesuffix("/manifest.json")
        for path in store.paths(prefix)
        if path.count("/") == 1 and path.endswith("/manifest.json")
    )
    weights = []
    for digest in digests:
        url = f"{prefix}/{digest}"
        state.faults += [f"model {digest}: {fault}" for fault in store.verify(url)]
        files = store.manifest(url)
        for path, file in files.items():
            if path.endswith(".safetensors"):
                weights.append((file.sha256, digest))
    for number, (sha256, digest) in enumerate(sorted(weights), start=1):
        state.add(f"model {number}", f"weights {sha256}", digest)


def _look_at_registry(state: State, settings: Any) -> None:
    from elder.errors import UserError
    from tasks.registry.ledger import open_ledger
    from tasks.registry.registration import TAG

    ledger = open_ledger(settings, Path.cwd(), settings.registry.name)
    registry, wanted = ledger.registry, f"name = '{ledger.name}'"
    with registry.refusals():
        versions = registry.client.search_model_versions(wanted)
    for version in versions:
        name = f"version {version.version}"
        if TAG not in version.tags:  # no reader takes it before it is signed
            state.things[f"unsigned {name}"] = "registered"
            continue
        try:
            verified = ledger.version(str(version.version))
        except UserError as error:
            state.faults.append(f"{name}: {error}")
            continue
        told = (
            f"without layers {verified.record.removed}, gate {version.tags.get('gate')}"
        )
        state.add(name, told, verified.digest)
    for alias, number in registry.aliases_and_tags()[0].items():
        state.things[f"alias {alias}"] = number
        if f"version {number}" not in state.things:
            state.faults.append(f"{alias} is version {number}, which is not there")
    _look_at_tracking(state, registry)


def _look_at_tracking(state: State, registry: Any) -> None:
    from tasks.provenance.bom import RECORD

    client = registry.client
    experiment = client.get_experiment_by_name(registry.settings.experiment)
    if experiment is None:
        return
    runs = client.search_runs([experiment.experiment_id])
    for number, run in enumerate(sorted(_names(runs)), start=1):
        name, found = f"MLflow run {number}", runs[_names(runs).index(run)]
        attached = sorted(registry.attached(found.info.run_id))
        status = found.info.status
        if status == "FINISHED" and not {RECORD, "report.html"} <= set(attached):
            state.faults.append(f"{name} is finished, and has no record or report")
        logged = (
            f"{len(found.data.params)} parameters, {len(found.data.metrics)} metrics"
        )
        state.things[name] = f"{status} with {', '.join(attached)}; {logged}"


def _names(runs: Any) -> list[str]:
    return [run.info.run_name for run in runs]


def _look_at_history(state: State, settings: Any) -> None:
    from tasks.registry.ledger import open_ledger

    ledger = open_ledger(settings, Path.cwd(), settings.registry.name)
    history = ledger.history()
    state.faults += ledger.faults(history)
    for entry in history.entries:
        what = f"{entry.action} {entry.previous} to {entry.version}"
        state.add(f"decision {entry.number}", what, str(entry.sha256))


def _look_at_runs(state: State) -> None:
    """Look at the folders of runs: at reports, at records, and at what says that a run is finished."""
    from elder.errors import UserError
    from tasks.run.folder import read_finished

    for report in Path("runs").glob("*/report.html"):
        if not report.read_text(encoding="utf-8").rstrip().endswith("</html>"):
            state.faults.append(f"{report} is not whole")
    finished = 0
    for folder in sorted(Path("runs").glob("*-*-*")):
        try:
            record = read_finished(folder)
        except UserError as error:
            state.faults.append(str(error))
            continue
        if record is None:
            continue
        finished += 1
        told = f"without layers {record.removed}, version {record.model_version}"
        state.add(f"finished run {finished}", told, folder.name)
        state.faults += list(_missing(folder, state, record.model_version))


def _missing(folder: Path, state: State, version: str | None) -> Iterator[str]:
    """Say what a finished run names and does not have."""
    if f"version {version}" not in state.things:
        yield f"{folder.name} is finished, and its version {version} is not there"
    if not (folder / "report.html").is_file():
        yield f"{folder.name} is finished, and has no report"
