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
from tasks.store.manifest import MANIFEST, describe, digest, dump

TEXT = "a b c a b b c a " * 60
Version = SimpleNamespace


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
    """Audit; return what does not hold, and what was said of it."""
    result = audit(settings, root, f"shallow/{version.number}", **options)
    faults = {check.name: check.detail for check in result.checks if check.ok is False}
    assert result.ok is (not faults)
    return faults


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
