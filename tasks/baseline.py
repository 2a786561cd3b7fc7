"""A row beside the candidate: as many layers removed by another method, nothing trained, under the same protocol."""

from pathlib import Path

import yaml
from prefect import task

import elder
from elder.compensation import NONE
from elder.compression.recipes import apply_method
from elder.compression.results import Learnt
from elder.files import read_json
from elder.fingerprint import Fingerprint, folder_digest, recipe_of
from elder.params import Params
from elder.record import BASELINE, Json, Row, plain
from tasks.rows import row
from tasks.run.run import Run
from tasks.stage import compression_stage, evaluate


def baselines(run: Run, dense: Fingerprint, blocks: str) -> list[Row]:
    """Return a row for each other method that the parameters ask for.

    Args:
        run: the run.
        dense: what the dense model's results depend on.
        blocks: digest of the calibration blocks.
    """
    rows = []
    for name in dict.fromkeys(run.settings.evaluate.baselines):
        if name != run.method:
            key = baseline_fingerprint(name, dense, blocks, run.settings).digest
            rows.append(Row.model_validate(baseline(key, name, run)))
    return rows


def baseline_fingerprint(
    name: str, dense: Fingerprint, blocks: str, settings: Params
) -> Fingerprint:
    """Return what a baseline's row depends on.

    Args:
        name: of the method.
        dense: what the dense model's results depend on.
        blocks: digest of the calibration blocks.
        settings: the run's parameters.
    """
    recipe = recipe_of(apply_method(settings, name))
    parts: dict[str, Json] = {
        "method": name,
        "dense": dense.digest,
        "calibration blocks": blocks,
        "seed": settings.calibration.seed,
        "code": folder_digest(Path(elder.__file__).parent),
    }
    for section in ("select", "compensate"):  # nothing is trained
        parts[section] = recipe[section]
    return Fingerprint(parts)


@task(
    name="baseline",
    task_run_name="baseline {name}",
    persist_result=True,
    result_serializer="json",
    cache_key_fn=lambda _, arguments: f"elder-baseline-{arguments['key']}",
)
def baseline(key: str, name: str, run: Run) -> dict[str, Json]:
    """Return the row of another method without training, unless the very same one was measured before.

    Plain values come back, which outlive this version in Prefect's storage.
    """
    own = apply_method(run.settings, name)
    run.baseline(name).mkdir(parents=True, exist_ok=True)
    mended = own.compensation != NONE
    if (
        not mended
        and own.select == run.settings.select
        and not run.settings.regularise.epochs
    ):
        # the baseline is what the candidate was before its own compensation
        work = run.work
    else:
        work = _compress_by(own, name, run)
    folder = work / ("compensate" if mended else "remove")
    learnt = Learnt.model_validate(read_json(work / "learn.json"))
    result = run.baseline(name) / "evaluation.json"
    evaluation = evaluate(name, folder, run.stage_params, result)
    spent = plain(learnt) | plain(learnt.spent)
    return plain(row(name, BASELINE, evaluation, spent, learnt.removed))


def _compress_by(own: Params, name: str, run: Run) -> Path:
    """Remove layers by a baseline's own recipe; returns the work folder."""
    tree = yaml.safe_load(run.stage_params.read_text(encoding="utf-8"))
    for section in ("select", "compensate", "recover"):
        tree[section] = getattr(own, section).model_dump(mode="json")
    tree["regularise"]["epochs"] = 0
    place = run.baseline(name)
    params, work = place / "params.yaml", place / "work"
    params.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    compression_stage("learn,remove,compensate", work, params, run.blocks)
    return work
