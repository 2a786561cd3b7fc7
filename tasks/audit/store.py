"""What an audit looks at in the store: manifest, files, digest, signature, bill of materials, weights."""

import json
import math
from pathlib import Path
from typing import Any

from elder.errors import UserError
from tasks.audit.evidence import Broken, Check, Evidence, Unknown
from tasks.provenance.bom import BOM, faults
from tasks.provenance.signing import SIGNATURE, fault, public_key
from tasks.store.manifest import difference, digest


def manifest(seen: Evidence) -> str:
    """Read the manifest, whose digest must be its own and that of its place."""
    return f"{len(seen.manifest)} files, digest {digest(seen.manifest)}"


def files(seen: Evidence) -> str:
    """Compute the sha256 of every file; none may lack, none may be there that the manifest does not name."""
    try:
        wanted, found = seen.manifest, seen.files
    except Broken:
        raise Unknown(
            "the manifest does not hold, so nothing says what the files should be"
        ) from None
    broken = [
        said
        for path, file in wanted.items()
        if (said := difference(path, found.get(path), file))
    ]
    broken += [f"{path} is not in the manifest" for path in sorted(set(found) - set(wanted))]
    if broken:
        raise Broken("; ".join(broken))
    return f"{sum(file.bytes for file in found.values()):,} bytes in {len(found)} files have the sha256 they should"


def version_digest(seen: Evidence) -> str:
    """Compare the digest over the files, as they are, with the version's tag and with the place it points to."""
    computed, tag = digest(seen.files), seen.tags.get("digest")
    broken = []
    if tag != computed:
        broken.append(f"the version's tag digest is {tag}, the files' digest is {computed}")
    if seen.source.rpartition("/")[2] != tag:
        broken.append(
            f"the version points to {seen.source}, which is not the place of its digest"
        )
    if broken:
        raise Broken("; ".join(broken))
    return f"tag, place and files agree on {computed}"


def signature(seen: Evidence) -> str:
    """Verify the signature with the public key, or with the identity that must have signed."""
    settings = seen.settings.signing
    key = seen.public_key or public_key(settings, seen.root)
    if key is None and not settings.keyless:
        raise Unknown(
            "signing.private_key is null, so no key is known; name one with --public-key"
        )
    if key is not None and seen.public_key is None and not key.is_file():
        raise Unknown(f"there is no public key {str(key)!r}; name one with --public-key")
    if key is None and not (settings.identity and settings.issuer):
        raise Unknown(
            "who must have signed is not said; set signing.identity and signing.issuer"
        )
    try:
        said = fault(seen.folder, settings, key)
    except UserError as error:
        raise Unknown(str(error)) from None
    if said:
        raise Broken(said)
    return f"{SIGNATURE} holds for every file, by {key or settings.identity}"


def bill_of_materials(seen: Evidence) -> str:
    """Compare the bill of materials with the files and with the record."""
    path = seen.folder / BOM
    if not path.is_file():
        raise Broken(f"{BOM} is missing")
    said = faults(path.read_text(encoding="utf-8", errors="replace"), seen.record, seen.files)
    if said:
        raise Broken(f"{BOM}: {'; '.join(said)}")
    return f"{BOM} lists the files, packages, data and metrics of the record"


def layers(seen: Evidence) -> str:
    """Count the layers that the configuration says, and the parameters that the weights' headers say."""
    from transformers import AutoConfig

    record = seen.record
    try:
        config = AutoConfig.from_pretrained(seen.folder, local_files_only=True)
    except Exception as error:  # each family complains in its own way
        raise Broken(f"config.json cannot be read ({type(error).__name__})") from None
    count = config.get_text_config(decoder=True).num_hidden_layers
    kept, before = record["kept"], record["num_layers"]
    if sorted([*kept, *record["removed"]]) != list(range(before)):
        raise Broken(
            f"removed and kept layers of the record are not the {before} layers of the dense model"
        )
    if count != len(kept):
        raise Broken(
            f"config.json says {count} layers, the record says that {len(kept)} were kept"
        )
    stored, said = parameters_stored(seen.folder), record["parameters_after"]
    if stored not in (said, said + _saved_buffers(config)):
        raise Broken(f"the weights hold {stored:,} parameters, the record says {said:,}")
    return f"{count} layers and {stored:,} parameters, as the record says"


def parameters_stored(folder: Path) -> int:
    """Return how many numbers the safetensors files of a folder hold, by their headers."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            try:
                header = json.loads(handle.read(min(size, 100 << 20)))
            except ValueError:
                raise UserError(f"the header of {path.name} cannot be read") from None
        total += sum(
            math.prod(tensor["shape"])
            for name, tensor in header.items()
            if name != "__metadata__"
        )
    return total


def _saved_buffers(config: Any) -> int:
    """Return how many numbers a checkpoint holds beside its parameters; most families have none."""
    from elder.model.removal import outline

    model = outline(config)
    buffers = {name for name, _ in model.named_buffers()}
    return sum(tensor.numel() for name, tensor in model.state_dict().items() if name in buffers)


STORE_CHECKS: dict[str, Check] = {
    "manifest": manifest,
    "files": files,
    "digest": version_digest,
    "signature": signature,
    "bill of materials": bill_of_materials,
    "layers and parameters": layers,
}
