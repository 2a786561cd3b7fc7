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
from typing import TYPE_CHECKING, TypedDict

from elder.errors import UserError
from elder.files import parse_json, write_text
from elder.names import path_fault
from elder.record import Json, Number, Record
from elder.report.card import model_name
from tasks.store.manifest import File, Files, describe

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

BOM = "bom.cdx.json"
RECORD = "record.json"
UNTOLD = ("$schema", "serialNumber")  # what of a bill does not follow from the record


class Interval(TypedDict):
    """One standard error to each side of a number."""

    lowerBound: str
    upperBound: str


class PerformanceMetric(TypedDict, total=False):
    """A measured number in CycloneDX's form."""

    type: str
    slice: str
    value: str
    confidenceInterval: Interval


def write_bom(folder: Path, record: Record, leave_out: tuple[str, ...] = ()) -> None:
    """Write the bill of materials of a model folder into it.

    Args:
        folder: the model's, complete but for the bill itself and what is written after it.
        record: as in its record.json.
        leave_out: files that the bill cannot know, such as the signature over it.
    """
    unknown = (BOM, *leave_out)
    files = {
        name: file for name, file in describe(folder).items() if name not in unknown
    }
    write_text(folder / BOM, bom(record, files))


def bom(record: Record, files: Files) -> str:
    """Return the bill of materials as JSON.

    Args:
        record: the run's record.
        files: what it lists, record.json among them.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.output.json import JsonV1Dot6

    model = _model(record, files)
    parts = [*_packages(record), *_data(record)]
    bill = Bom(serial_number=uuid.UUID(serial(files)), version=1)
    made_at = datetime.fromisoformat(record.created)
    bill.metadata = BomMetaData(component=model, timestamp=made_at)
    for part in parts:
        bill.components.add(part)
    bill.register_dependency(model, parts)
    tree = json.loads(JsonV1Dot6(bill).output_as_string())
    card = model_card(record)
    tree["metadata"]["component"]["modelCard"] = card  # the library's has no data sets
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
        tree = parse_json(text, BOM)
        listed = listed_files(tree)
    except (ValueError, UserError):
        return ["it cannot be read"]
    sentences = []
    for name, sha256 in listed.items():
        if name in files and files[name].sha256 != sha256:
            sentences.append(f"it gives another sha256 for {name}")
    for name in sorted(set(listed) - set(files)):
        sentences.append(f"it lists {name}, which is not there")
    if RECORD not in listed:
        return [*sentences, f"it does not list {RECORD}"]
    if RECORD in files and tree.get("serialNumber") != f"urn:uuid:{serial(files)}":
        sentences.append("it was made for another record")
    as_listed = {name: File(sha256=sha256, bytes=0) for name, sha256 in listed.items()}
    wanted = json.loads(bom(record, as_listed))
    for key, value in wanted.items():
        if key not in UNTOLD and tree.get(key) != value:
            sentences.append(f"its {key} differ from what the record says")
    return sentences


def listed_files(tree: Json) -> dict[str, str]:
    """Return {path: sha256} of the files that a bill of materials lists.

    Args:
        tree: its parsed JSON, which may hold anything.

    Raises:
        ValueError: it is no bill of materials, or gives something else than a sha256.
    """
    try:
        parts = tree["metadata"]["component"]["components"]
        listed = {part["name"]: part["hashes"][0]["content"] for part in parts}
        for name, sha256 in listed.items():
            File(sha256=sha256, bytes=0)
            if not isinstance(name, str) or path_fault(name):
                raise ValueError("a name is none of a model's file")
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError("it is no bill of materials") from error
    return listed


def model_card(record: Record) -> dict[str, Json]:
    """Return the model card in CycloneDX's form: what the model is, the data behind it, and the measured numbers."""
    references = sorted(f"data:{name}" for name in record.lineage.data)
    return {
        "bom-ref": "model-card",
        "modelParameters": {
            "approach": {"type": "self-supervised"},
            "task": "text-generation",
            "datasets": [{"ref": reference} for reference in references],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(record))},
        "properties": [
            {"name": name, "value": value} for name, value in _facts(record)
        ],
    }


def _model(record: Record, files: Files) -> "Component":
    """Return the model: its files, and the dense one that it was made from."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    weights = Property(name="elder:weights_sha256", value=record.model.digest)
    dense = Component(
        name=record.model.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=record.model.revision,
        bom_ref="dense-model",
        properties=[weights],
    )
    parts = []
    for name, file in files.items():
        sha256 = HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)
        kind = ComponentType.FILE
        parts.append(
            Component(name=name, type=kind, bom_ref=f"file:{name}", hashes=[sha256])
        )
    return Component(
        name=model_name(record.model.name, record.removed),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=record.run_id,
        bom_ref="model",
        components=parts,
        pedigree=Pedigree(ancestors=[dense]),
    )


def _packages(record: Record) -> Iterator["Component"]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    packages = record.lineage.installed or record.lineage.packages
    for name, version in packages.items():
        yield Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            bom_ref=f"pypi:{name}",
            purl=PackageURL("pypi", name=name, version=version),
        )


def _data(record: Record) -> Iterator["Component"]:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    for name, digest in record.lineage.data.items():
        md5 = HashType(alg=HashAlgorithm.MD5, content=digest)
        kind = ComponentType.DATA
        yield Component(name=name, type=kind, bom_ref=f"data:{name}", hashes=[md5])


def _metrics(record: Record) -> Iterator[PerformanceMetric]:
    """Yield the numbers of every row, with one standard error to each side; what is not finite has none."""
    for row in record.rows:
        for domain, measured in row.perplexity.items():
            if measured.perplexity is not None:
                where = f"{row.name}, {domain}"
                yield _metric("perplexity", where, measured.perplexity, measured.stderr)
        for task, result in row.tasks.items():
            if result.value is not None:
                where = f"{row.name}, {task}"
                yield _metric(result.metric, where, result.value, result.stderr)


def _metric(
    kind: str, part: str, value: Number, stderr: Number | None
) -> PerformanceMetric:
    metric: PerformanceMetric = {"type": kind, "slice": part, "value": repr(value)}
    if stderr is not None:
        metric["confidenceInterval"] = {
            "lowerBound": repr(value - stderr),
            "upperBound": repr(value + stderr),
        }
    return metric


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    facts = {
        "method": record.method,
        "removed layers, in order": record.removed,
        "layers before": record.model.num_layers,
        "parameters": record.parameters_after,
        "gate": {"mode": record.gate.mode, "passed": record.gate.passed},
        "commit": record.lineage.git_commit,
        "energy": record.energy,
    }
    for name, value in facts.items():
        if value is not None:
            yield (
                f"elder:{name}",
                value if isinstance(value, str) else json.dumps(value),
            )
