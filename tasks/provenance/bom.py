"""The bill of materials of a model folder: ``bom.cdx.json``, a CycloneDX 1.6 ML-BOM.

It lists the files with their hashes, the dense model that the model was made from, the calibration and evaluation data
with their digests, the packages, and a model card with the measured numbers. The same record and files give the same
bytes: its serial number comes from the record, its time is the record's.
"""

import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elder.report.card import model_name
from tasks.store.manifest import File, Files, describe

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component

BOM = "bom.cdx.json"
RECORD = "record.json"
Record = dict[str, Any]


def write_bom(folder: Path, record: Record, leave_out: tuple[str, ...] = ()) -> None:
    """Write the bill of materials of a model folder into it.

    Args:
        folder: the model's, complete but for the bill itself and what is written after it.
        record: as in its record.json.
        leave_out: files that the bill cannot know, such as the signature over it.
    """
    files = {
        name: file for name, file in describe(folder).items() if name not in (BOM, *leave_out)
    }
    (folder / BOM).write_text(bom(record, files), encoding="utf-8")


def bom(record: Record, files: Files) -> str:
    """Return the bill of materials as JSON.

    Args:
        record: the run's record.
        files: what it lists, record.json among them.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.output.json import JsonV1Dot6

    made = Bom(serial_number=uuid.UUID(serial(files)), version=1)
    model, packages, data = _model(record, files), _packages(record), _data(record)
    made.metadata = BomMetaData(
        component=model, timestamp=datetime.fromisoformat(record["created"])
    )
    for component in [*packages, *data]:
        made.components.add(component)
    made.register_dependency(model, [*packages, *data])
    tree = json.loads(JsonV1Dot6(made).output_as_string())
    tree["metadata"]["component"]["modelCard"] = model_card(
        record
    )  # the library has no data sets in its model card
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def serial(files: Files) -> str:
    """Return the serial number: a UUID made from the record's digest."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{files[RECORD].sha256}"))


def faults(text: str, record: Record, files: Files) -> list[str]:
    """Compare a bill of materials with the folder it lies in; returns a sentence for each thing that does not hold.

    Args:
        text: content of bom.cdx.json.
        record: content of record.json.
        files: all files of the folder, as they are.
    """
    try:
        tree = json.loads(text)
        model = tree["metadata"]["component"]
        listed = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    except (ValueError, KeyError, TypeError, IndexError):
        return ["it cannot be read"]
    found = [
        f"it gives another sha256 for {name}"
        for name, sha256 in listed.items()
        if name in files and files[name].sha256 != sha256
    ]
    found += [
        f"it lists {name}, which is not there" for name in sorted(set(listed) - set(files))
    ]
    if RECORD in files and tree.get("serialNumber") != f"urn:uuid:{serial(files)}":
        found.append("it was made for another record")
    wanted = json.loads(
        bom(record, {name: File(sha256=sha256, bytes=0) for name, sha256 in listed.items()})
    )
    differing = [
        key
        for key in wanted
        if key not in ("$schema", "serialNumber") and tree.get(key) != wanted[key]
    ]
    return found + [f"its {key} differ from what the record says" for key in differing]


def model_card(record: Record) -> Record:
    """Return the model card in CycloneDX's form: what the model is, the data behind it, and the measured numbers."""
    return {
        "bom-ref": "model-card",
        "modelParameters": {
            "approach": {"type": "self-supervised"},
            "task": "text-generation",
            "datasets": [{"ref": reference} for reference in _references(record)],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(record))},
        "properties": [{"name": name, "value": value} for name, value in _facts(record)],
    }


def _model(record: Record, files: Files) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    source = record["model"]
    ancestor = Component(
        name=source["name"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=source.get("revision"),
        bom_ref="dense-model",
        properties=[_property("elder:weights_sha256", source["digest"])],
    )
    parts = [
        Component(
            name=name,
            type=ComponentType.FILE,
            bom_ref=f"file:{name}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
        )
        for name, file in files.items()
    ]
    return Component(
        name=model_name(record),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=record["run_id"],
        bom_ref="model",
        components=parts,
        pedigree=Pedigree(ancestors=[ancestor]),
    )


def _packages(record: Record) -> list["Component"]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    lineage = record["lineage"]
    return [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"pypi:{name}",
            purl=PackageURL("pypi", name=name, version=version),
        )
        for name, version in (lineage.get("installed") or lineage["packages"]).items()
    ]


def _data(record: Record) -> list["Component"]:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return [
        Component(
            name=name,
            type=ComponentType.DATA,
            bom_ref=f"data:{name}",
            hashes=[HashType(alg=HashAlgorithm.MD5, content=digest)],
        )
        for name, digest in (record["lineage"].get("data") or {}).items()
    ]


def _references(record: Record) -> list[str]:
    return sorted(f"data:{name}" for name in record["lineage"].get("data") or {})


def _metrics(record: Record) -> Iterator[Record]:
    """Yield the numbers of every row, with one standard error to each side."""
    for row in record.get("rows") or []:
        for domain, found in (row.get("perplexity") or {}).items():
            yield _metric(
                "perplexity",
                f"{row['name']}, {domain}",
                found["perplexity"],
                found.get("stderr"),
            )
        for task, found in (row.get("tasks") or {}).items():
            yield _metric(
                found["metric"], f"{row['name']}, {task}", found["value"], found.get("stderr")
            )


def _metric(kind: str, part: str, value: float, stderr: float | None) -> Record:
    interval = (
        {}
        if stderr is None
        else {"lowerBound": repr(value - stderr), "upperBound": repr(value + stderr)}
    )
    return {"type": kind, "slice": part, "value": repr(value)} | (
        {"confidenceInterval": interval} if interval else {}
    )


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    gate = record.get("gate") or {}
    facts = {
        "method": record.get("method"),
        "removed layers, in order": record["removed"],
        "layers before": record["model"].get("num_layers"),
        "parameters": record.get("parameters_after"),
        "gate": {"mode": gate.get("mode"), "passed": gate.get("passed")},
        "commit": record["lineage"].get("git_commit"),
        "energy": record.get("energy"),
    }
    for name, value in facts.items():
        if value is not None:
            yield f"elder:{name}", value if isinstance(value, str) else json.dumps(value)


def _property(name: str, value: str) -> "Property":
    from cyclonedx.model import Property

    return Property(name=name, value=value)
