"""Registered versions without a run behind them: a few bytes, a record, and the tags that a run's version has."""

import json
from pathlib import Path
from typing import Any

from elder import params
from tasks.registry.client import Registry
from tasks.store.base import Published
from tasks.store.open import configured_store


def settings_for(
    store: str, tracking_uri: str, endpoint: str | None = None, name: str = "tiny"
) -> params.Params:
    return params.Params(
        store=params.Store(url=store, endpoint=endpoint, region="us-east-1"),
        registry=params.Registry(name=name, tracking_uri=tracking_uri),
    )


def record(perplexity: float, protocol: str = "p", layers: int = 9) -> dict[str, Any]:
    row = {
        "name": "default",
        "kind": "candidate",
        "perplexity": {
            "in_domain": {"perplexity": perplexity - 1},
            "out_of_domain": {"perplexity": perplexity},
        },
        "task_mean": {"value": 0.75, "stderr": 0.01},
        "protocol": {"evaluate": {"text": protocol}},
        "protocol_digest": protocol,
    }
    return {
        "run_id": "r",
        "created": "2026-11-24T02:15:00+00:00",
        "model": {"name": "models/dense"},
        "removed": [layers],
        "kept": list(range(layers)),
        "rows": [row],
        "gate": {"mode": "on", "passed": True},
    }


def register(
    settings: params.Params,
    folder: Path,
    content: dict[str, Any] | None,
    gate: str = "passed",
) -> tuple[str, Published]:
    """Publish a folder with this record in it and register it under ``settings.registry.name``; returns the version."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(f"weights of {folder.name}".encode())
    if content is not None:
        (folder / "record.json").write_text(json.dumps(content))
    name = settings.registry.name
    published = configured_store(settings.store, folder.parent).publish(folder, name)
    registry = Registry(settings.registry)
    registry.ensure_model()
    tags = {"digest": published.digest, "gate": gate}
    made = registry.client.create_model_version(name, published.url, tags=tags)
    return str(made.version), published
