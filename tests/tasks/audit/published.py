"""What a published version of the audit's tests is made of, and what they do with it: look at it, and spoil it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from elder import params
from tasks.audit.run import audit
from tasks.provenance.keys import signer_of
from tasks.registry.history import Entry, append
from tasks.registry.ledger import open_ledger
from tasks.registry.versions import write_history
from tasks.store.manifest import MANIFEST, describe, digest, dump

TEXT = "a b c a b b c a " * 60
Version = SimpleNamespace
# a key that nobody trusts but its owner
FOREIGN = params.Signing(private_key="foreign.pem", trusted="foreign.yaml")


def md5() -> str:
    return hashlib.md5(TEXT.encode()).hexdigest()


def words() -> PreTrainedTokenizerFast:
    plain = Tokenizer(
        models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<unk>")
    )
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")


def parameters(root: Path) -> dict[str, Any]:
    """Return parameters with which the gate refuses everything and only says so; the model has no task of lm-eval."""
    return {
        "model": {"name": "models/dense"},
        "calibration": {"seq_len": 8},
        "evaluate": {"tasks": [], "max_tokens": 256},
        "gate": {
            "mode": "dry-run",
            "max_perplexity_ratio_in_domain": 1e-3,
            "max_task_mean_loss": None,
        },
        "store": {"url": str(root / "store")},
        "registry": {"name": "shallow", "tracking_uri": f"sqlite:///{root}/mlflow.db"},
    }


def broken(
    settings: params.Params, root: Path, version: Version, **options: Any
) -> dict[str, str]:
    """Audit; return what does not hold and is not waived, and what was said of it."""
    result = audit(settings, root, f"{version.name}/{version.number}", **options)
    said = {check.name: check.detail for check in result.checks}
    assert result.ok is (not result.broken)
    return {name: said[name] for name in result.broken}


def decide(version: Version) -> None:
    """Make a version champion by a signed decision that the registry tells."""
    ledger = open_ledger(version.settings, version.root, version.name)
    log, head = ledger.history().entries, ledger.history().head
    entry = Entry(
        number=len(log) + 1,
        action="promote",
        version=version.number,
        previous=log[-1].version if log else None,
        digest=version.digest,
        by="ada@example.org",
        at="2026-11-25T02:15:00+00:00",
        reason="better",
        compared="It is better.",
        before=head,
    )
    signer = signer_of(version.settings.signing, version.root, "decision")
    assert append(ledger.decisions, version.name, entry, signer)
    write_history(ledger.registry, ledger.history().entries)


def flip(path: Path) -> None:
    """Turn over one bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree, indent=1) + "\n")


def renew_manifest(place: Path) -> str:
    """Write a manifest that fits the files as they are, as somebody would who covers his tracks."""
    files = {path: file for path, file in describe(place).items() if path != MANIFEST}
    (place / MANIFEST).write_bytes(dump(files))
    return digest(files)
