"""What two results must share to be comparable, as a fingerprint; it needs no run of the model."""

import hashlib
import json
from pathlib import Path
from typing import Any

from elder import params
from elder.device import device_of_model
from elder.fingerprint import Fingerprint, folder_digest, package_version, text_digest
from elder.model.load import Loaded
from elder.record import Domain

PROTOCOL = 1  # raised whenever the way of measuring changes: what was measured before is then not comparable


def texts_of(settings: params.Evaluate) -> dict[Domain, Path]:
    """Return the text of each domain."""
    return {
        "in_domain": Path(settings.in_domain),
        "out_of_domain": Path(settings.out_of_domain),
    }


def protocol(settings: params.Evaluate, loaded: Loaded, seq_len: int) -> Fingerprint:
    """Say what two results must share to be comparable; imports no lm-eval.

    Digests stand for the texts, the tokenizer and the whole folder of task data; lm-eval's version stands for its own
    task definitions. Data that lm-eval fetches from the Hub are not pinned by it.

    Args:
        settings: texts, tasks and limits.
        loaded: its tokenizer, dtype and kind of device count, its weights do not. ``bos`` names the tokens that each
            block begins with; where there are none, nothing does.
        seq_len: tokens in a block.

    Raises:
        UserError: if a text or the folder of task data is missing.
    """
    texts = {domain: text_digest(path) for domain, path in texts_of(settings).items()}
    # what was measured before there was such a part had no first token either, and stays comparable
    first = (
        {"bos": loaded.tokenizer.convert_ids_to_tokens(list(loaded.bos))}
        if loaded.bos
        else {}
    )
    return Fingerprint(
        first
        | {
            "version": PROTOCOL,
            "texts": texts,
            "seq_len": seq_len,
            "max_tokens": settings.max_tokens,
            "tasks": list(settings.tasks),
            "task_data": _task_data_digest(settings),
            "limit": settings.limit,
            "lm_eval": package_version("lm_eval") if settings.tasks else None,
            "tokenizer": _tokenizer_digest(loaded.tokenizer),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "device": device_of_model(loaded.model).type,
        }
    )


def _task_data_digest(settings: params.Evaluate) -> str | None:
    if not settings.tasks or not settings.task_data:
        return None
    return folder_digest(Path(settings.task_data))


def _tokenizer_digest(tokenizer: Any) -> str:
    """Return the sha256 over a tokenizer's definition; how it pads and truncates at the moment does not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tree = json.loads(backend.to_str()) if backend else {"vocab": tokenizer.get_vocab()}
    tree.pop("padding", None)
    tree.pop("truncation", None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
