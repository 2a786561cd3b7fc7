"""Registered versions without a run behind them: a few bytes, a signed record, and the tags that a version has."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from elder import params
from elder.evaluation.gate import judge
from elder.record import Row, Speed
from tasks.provenance.keys import signer_of
from tasks.provenance.signing import check_key, sign
from tasks.registry.client import Registry
from tasks.store.base import Published
from tasks.store.open import configured_store

# all rules but one are switched off: nothing was measured
SOUND = {"finite": True, "factor": 1.5, "matrix": "lm_head.weight"}
RULES = {
    "max_perplexity_ratio_in_domain": None,
    "max_perplexity_ratio_out_of_domain": 1.5,
    "max_task_mean_loss": None,
    "max_task_loss": None,
    "min_prompt_speedup": None,
    "max_memory_ratio": None,
    "max_repetition": None,
    "check_generation": False,
    "check_loads": False,
    "max_champion_ratio": None,
}


@cache
def keys(folder: Path) -> params.Signing:
    """Make a key in a folder, once, that is trusted with everything."""
    signing = params.Signing(
        private_key=str(folder / "signing.pem"), trusted=str(folder / "trusted.yaml")
    )
    check_key(signing, folder)
    path = folder / "trusted.yaml"  # records of tests are older than this key
    path.write_text(path.read_text().replace("since", "until").replace("2026", "2999"))
    return signing


def settings_for(
    store: str,
    tracking_uri: str,
    endpoint: str | None = None,
    name: str = "tiny",
    signing: params.Signing | None = None,
) -> params.Params:
    return params.Params(
        store=params.Store(url=store, endpoint=endpoint, region="us-east-1"),
        registry=params.Registry(name=name, tracking_uri=tracking_uri),
        signing=signing or params.Signing(),
    )


def record(
    perplexity: float,
    protocol: str = "p",
    layers: int = 9,
    gate: str = "passed",
    name: str = "tiny",
) -> dict[str, Any]:
    """Return the record of a run, with the verdict that follows from its numbers.

    Args:
        perplexity: of the candidate, out of domain.
        protocol: under which it was measured.
        layers: how many were kept.
        gate: ``passed``, ``refused``, or ``off``; after ``dry-run: `` the mode is that.
        name: registered model that it is for.
    """
    candidate = {
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
    before = perplexity / (2 if gate.endswith("refused") else 1)
    measured = {"out_of_domain": {"perplexity": before}}
    dense = candidate | {"name": "dense", "kind": "dense", "perplexity": measured}
    mode = {"passed": "on", "refused": "on", "off": "off"}.get(gate, "dry-run")
    rules = params.Gate.model_validate(RULES | {"mode": mode})
    rows = (Row.model_validate(row) for row in (dense, candidate))
    return {
        "run_id": f"r{perplexity:g}",
        "created": "2026-11-24T02:15:00+00:00",
        "model": {"name": "models/dense"},
        "removed": [layers],
        "kept": list(range(layers)),
        "rows": [dense, candidate],
        "speed": {"weights": SOUND},
        "gate": judge(
            rules, *rows, Speed.model_validate({"weights": SOUND}), None
        ).model_dump(mode="json"),
        "lineage": {
            "params": {
                "registry": {"name": name},
                "gate": rules.model_dump(mode="json"),
            }
        },
    }


def register(
    settings: params.Params,
    folder: Path,
    content: dict[str, Any] | None,
    gate: str = "passed",
) -> tuple[str, Published]:
    """Publish a folder with this record in it and register it under ``settings.registry.name``; returns the version."""
    folder.mkdir(parents=True)
    name, root = settings.registry.name, folder.parent
    (folder / "model.safetensors").write_bytes(f"weights of {folder.name}".encode())
    if content is not None:
        content["lineage"]["params"]["registry"]["name"] = name
        (folder / "record.json").write_text(json.dumps(content))
    sign(folder, settings.signing, root)
    published = configured_store(settings.store, root).publish(folder, name)
    registry = Registry(settings.registry)
    registry.ensure_model()
    tags = {"digest": published.digest, "gate": gate}
    made = registry.client.create_model_version(name, published.url, tags=tags)
    version, run_id = str(made.version), content["run_id"] if content else "r"
    signer = signer_of(settings.signing, root, "model")
    registry.sign_version(version, published.digest, run_id, signer)
    return version, published
