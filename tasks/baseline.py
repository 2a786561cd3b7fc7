"""A row beside the candidate: as many layers removed by another method, nothing trained, under the same protocol."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from prefect import task

import elder
from elder.compensation import NONE
from elder.compression.recipes import apply_method
from elder.fingerprint import folder_digest, recipe_of
from elder.params import Params
from tasks.record import row
from tasks.stage import compression_stage, evaluate


def baseline_key(name: str, dense_key: str, blocks: str, settings: Params) -> str:
    """Return the digest of all that a baseline's row depends on.

    Args:
        name: of the method.
        dense_key: digest of weights, texts, tasks and protocol.
        blocks: digest of the calibration blocks.
        settings: the run's parameters.
    """
    code = folder_digest(Path(elder.__file__).parent)
    recipe = recipe_of(apply_method(settings, name))
    chosen = [
        recipe["select"],
        recipe["compensate"],
        settings.calibration.seed,
    ]  # nothing is trained
    return hashlib.sha256(repr([name, dense_key, blocks, chosen, code]).encode()).hexdigest()


@task(
    name="baseline",
    task_run_name="baseline {name}",
    persist_result=True,
    result_serializer="json",
    cache_key_fn=lambda _, arguments: f"elder-baseline-{arguments['key']}",
)
def baseline(
    key: str, name: str, settings: Params, run_dir: Path, params: Path, blocks: Path
) -> dict[str, Any]:
    """Return the row of another method without training, unless the very same one was measured before."""
    plain = apply_method(settings, name)
    place, work = run_dir / "baselines" / name, run_dir / "work"
    place.mkdir(parents=True, exist_ok=True)
    alike = plain.select == settings.select and not settings.regularise.epochs
    folder = (
        work / "remove"
    )  # where the baseline is what the candidate was before its compensation and recovery
    if not alike or plain.compensate.method != NONE:
        own, work = place / "params.yaml", place / "work"
        tree = yaml.safe_load(params.read_text(encoding="utf-8"))
        sections = ("select", "compensate", "recover")
        tree |= {
            section: getattr(plain, section).model_dump(mode="json") for section in sections
        }
        tree["regularise"]["epochs"] = 0
        own.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        compression_stage("learn,remove,compensate", work, own, blocks)
        folder = work / ("remove" if plain.compensate.method == NONE else "compensate")
    learnt = json.loads((work / "learn.json").read_text(encoding="utf-8"))
    found = evaluate(name, folder, params, place / "evaluation.json")
    return row(name, "baseline", found, learnt | learnt["spent"], learnt["removed"])
