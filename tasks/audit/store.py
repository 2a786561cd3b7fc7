"""What an audit looks at in the store: names, manifest, files, digest, signature, bill of materials, MLmodel, size."""

import math
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from elder.errors import UserError
from elder.names import shown
from tasks.audit.evidence import Broken, Check, Evidence, Unknown, small_file
from tasks.provenance.bom import BOM
from tasks.provenance.bom import faults as bom_faults
from tasks.provenance.signing import SIGNATURE
from tasks.registry.flavour import MLMODEL
from tasks.registry.flavour import faults as flavour_faults
from tasks.store.manifest import MEND, difference, digest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def names(evidence: Evidence) -> str:
    """Look at what lies there: regular files alone, under names that stay inside and that every system takes."""
    if evidence.astray:
        faults = [f"{shown(name)} {fault}" for name, fault in evidence.astray.items()]
        raise Broken("; ".join(faults))
    return f"{len(evidence.files)} regular files, none of whose names leads elsewhere"


def manifest(evidence: Evidence) -> str:
    """Read the manifest, whose digest must be its own and that of its place."""
    named = evidence.manifest
    return f"{len(named)} files, digest {digest(named)}"


def files(evidence: Evidence) -> str:
    """Compute the sha256 of every file; none may lack, none may be there that the manifest does not name."""
    try:
        wanted, present = evidence.manifest, evidence.files
    except Broken:
        raise Unknown(
            "the manifest does not hold, so nothing says what the files should be"
        ) from None
    differing = [
        difference(path, present.get(path), file) for path, file in wanted.items()
    ]
    faults = [sentence for sentence in differing if sentence]
    if faults:
        faults.append(f"from its run's folder this sends them again: {MEND}")
    faults += [
        f"{path} is not in the manifest" for path in sorted(set(present) - set(wanted))
    ]
    if faults:
        raise Broken("; ".join(faults))
    size = sum(file.bytes for file in present.values())
    return f"{size:,} bytes in {len(present)} files have the sha256 they should"


def version_digest(evidence: Evidence) -> str:
    """Compare the digest over the files, as they are, with the version's tag and with the place it points to."""
    computed, tag = digest(evidence.files), evidence.tags.get("digest")
    faults = []
    if tag != computed:
        faults.append(
            f"the version's tag digest is {tag}, the files' digest is {computed}"
        )
    if evidence.source.rpartition("/")[2] != tag:
        faults.append(
            f"the version points to {evidence.source}, which is not the place of its digest"
        )
    if faults:
        raise Broken("; ".join(faults))
    return f"tag, place and files agree on {computed}"


def signature(evidence: Evidence) -> str:
    """Verify the signature: by a key that is trusted with models, over every file as it is, made in the key's time."""
    signed = evidence.signature
    if isinstance(signed, UserError):
        raise Broken(str(signed))
    if signed.key and (signed.key.since or signed.key.until):
        made = datetime.fromisoformat(evidence.record.created)
        fault = signed.key.untimely(made)
        if fault:
            raise Broken(f"{SIGNATURE} does not count: {fault}")
    return f"{SIGNATURE} holds for every file, by {signed.by}"


def bill_of_materials(evidence: Evidence) -> str:
    """Compare the bill of materials with the files and with the record."""
    path = evidence.content() / BOM
    if not path.is_file():
        raise Broken(f"{BOM} is missing")
    text = small_file(path).decode(errors="replace")
    sentences = bom_faults(text, evidence.record, evidence.files)
    if sentences:
        raise Broken(f"{BOM}: {'; '.join(sentences)}")
    return f"{BOM} lists the files, packages, data and metrics of the record"


def mlflow_model(evidence: Evidence) -> str:
    """Read what MLflow is told of how to load the model: no code but transformers', no other place than this folder."""
    path = evidence.content() / MLMODEL
    if MLMODEL not in evidence.files:
        return f"there is no {MLMODEL}: MLflow knows where the model lies, and cannot load it"
    sentences = flavour_faults(small_file(path).decode(errors="replace"))
    if sentences:
        raise Broken(f"{MLMODEL}: {'; '.join(sentences)}")
    return (
        f"{MLMODEL} loads the files beside it with transformers, and no code of theirs"
    )


def layers(evidence: Evidence) -> str:
    """Count the layers that the configuration says, and the parameters that the weights' headers say."""
    from transformers import AutoConfig

    record = evidence.record
    before, after = record.num_layers, record.parameters_after
    if before is None or after is None:
        raise Broken(
            "the record does not say how many layers and parameters there were"
        )
    refuse_foreign_code(evidence.content())
    try:
        config = AutoConfig.from_pretrained(
            evidence.content(), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # each family complains in its own way
        raise Broken(f"config.json cannot be read ({type(error).__name__})") from None
    count = config.get_text_config(decoder=True).num_hidden_layers
    if sorted([*record.kept, *record.removed]) != list(range(before)):
        raise Broken(
            f"removed and kept layers of the record are not the {before} layers of the dense model"
        )
    if count != len(record.kept):
        raise Broken(
            f"config.json says {count} layers, the record says that {len(record.kept)} were kept"
        )
    stored = parameters_stored(evidence.content())
    if stored not in (after, after + _saved_buffers(config)):
        raise Broken(
            f"the weights hold {stored:,} parameters, the record says {after:,}"
        )
    return f"{count} layers and {stored:,} parameters, as the record says"


def refuse_foreign_code(folder: Path) -> None:
    """Leave a model alone that needs code which is not transformers' own: whatever the parameters say, none is run."""
    from elder.model.check import foreign_code, read_config

    needed = foreign_code(read_config(folder))
    if needed:
        raise Unknown(f"{str(folder)!r} needs {needed}, which an audit never runs")


def parameters_stored(folder: Path) -> int:
    """Return how many numbers the safetensors files of a folder hold, by their headers.

    Raises:
        UserError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="np") as weights:
                for name in weights.keys():  # noqa: SIM118 (it is no mapping)
                    total += math.prod(weights.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"the header of {path.name} cannot be read ({error})"
            ) from None
    return total


def _saved_buffers(config: "PreTrainedConfig") -> int:
    """Return how many numbers a checkpoint holds beside its parameters; most families have none."""
    from elder.model.removal import outline

    model = outline(config)
    buffers = {name for name, _ in model.named_buffers()}
    saved = model.state_dict()
    return sum(saved[name].numel() for name in buffers & saved.keys())


STORE_CHECKS: dict[str, Check] = {
    "names": names,
    "manifest": manifest,
    "files": files,
    "digest": version_digest,
    "signature": signature,
}
# what is parsed once the signature holds
CONTENT_CHECKS: dict[str, Check] = {
    "bill of materials": bill_of_materials,
    "MLflow model": mlflow_model,
    "layers and parameters": layers,
}
