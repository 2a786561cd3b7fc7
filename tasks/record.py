"""Put the run's record together from what its tasks returned, and tell it: to the registry, the report and the card."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import task

from elder import params
from elder.evaluation.gate import judge as judge_rules
from elder.evaluation.protocol import PROTOCOL
from elder.files import write_json
from elder.fingerprint import folder_digest, package_version
from elder.record import Champion, Evaluation, Row, Speed, plain, read_record
from elder.report.card import model_card
from elder.report.html import write_report
from tasks.errors import without_secrets
from tasks.provenance.bom import RECORD, write_bom
from tasks.provenance.signing import SIGNATURE, sign
from tasks.registry.client import Registry
from tasks.retry import try_again
from tasks.store.base import Published
from tasks.store.open import configured_store

BUDGET = (
    "tokens_seen",
    "tokens_generated",
    "optimizer_steps",
    "trainable_parameters",
    "seconds",
    "peak_memory_bytes",
)


def row(
    name: str, kind: str, found: dict[str, Any], spent: dict[str, Any], removed: list[int]
) -> dict[str, Any]:
    """Return one line of the comparison: what was measured, and the budget it took."""
    measured = plain(Evaluation.model_validate(found))
    measured.pop("seconds")  # what evaluating took is no part of the budget
    budget = {key: spent.get(key, 0) for key in BUDGET}
    return {"name": name, "kind": kind, "removed": removed, **measured, **budget}


def dense_key(weights: str, settings: params.Params, data: dict[str, str], root: Path) -> str:
    """Return the digest of all that the dense model's results depend on: weights, texts, tasks and protocol."""
    chosen = settings.evaluate
    protocol = chosen.model_dump(
        mode="json", exclude={"baselines", "in_domain", "out_of_domain", "task_data"}
    )
    tasks = (
        folder_digest(root / chosen.task_data) if chosen.tasks and chosen.task_data else None
    )
    versions = [
        PROTOCOL,
        package_version("lm_eval"),
        *(version(name) for name in ("elder", "transformers", "torch")),
    ]
    texts = [
        data[name] for name in ("in_domain.txt", "out_of_domain.txt", "pins/tokenizer.json")
    ]
    kind = [settings.calibration.seq_len, settings.model.dtype, settings.model.device]
    return hashlib.sha256(
        repr([weights, protocol, kind, texts, tasks, versions]).encode()
    ).hexdigest()


@task(name="gate")
def judge(
    settings: params.Gate,
    dense: dict[str, Any],
    candidate: dict[str, Any],
    speed: dict[str, Any],
    champion: dict[str, Any] | None,
) -> dict[str, Any]:
    """Judge the candidate by the rules of the gate."""
    verdict = judge_rules(
        settings,
        Row.model_validate(dense),
        Row.model_validate(candidate),
        Speed.model_validate(speed),
        Champion.model_validate(champion) if champion else None,
    )
    return plain(verdict)


@task(name="settle")
def settle(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write down what is going to be published, or return what an earlier attempt of the same run wrote.

    A run that was killed while it published then publishes the same bytes again, and registers no second version.
    """
    if not path.exists():
        write_json(path, without_secrets(record))
    return json.loads(path.read_text(encoding="utf-8"))


@task(name="store", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def publish(
    folder: Path, record: dict[str, Any], settings: params.Params, root: Path
) -> Published:
    """Put all that is known into the model folder, with its bill of materials, sign it, and put it into the store."""
    (folder / "README.md").write_text(model_card(read_record(record, RECORD)), encoding="utf-8")
    told = json.loads((folder / "elder.json").read_text(encoding="utf-8"))
    write_json(
        folder / "elder.json",
        told | {key: record[key] for key in ("run_id", "model", "lineage")},
    )
    write_json(folder / RECORD, record)
    write_bom(folder, read_record(record, RECORD), leave_out=(SIGNATURE,))
    sign(folder, settings.signing, root)
    return configured_store(settings.store, root).publish(folder, settings.registry.name)


@task(name="register", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def register(
    record: dict[str, Any], published: Published, settings: params.Registry
) -> tuple[str, str | None]:
    """Record the run in MLflow and, where the gate lets it pass, register the model; returns (MLflow run, version)."""
    registry, typed = Registry(settings), read_record(record, RECORD)
    run = registry.start_run(typed.run_id)
    registry.log_record(run, typed)
    return run, registry.register(run, typed, published)


@task(name="report", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def report(
    record: dict[str, Any], run_dir: Path, settings: params.Registry, mlflow_run: str
) -> Path:
    """Write record and report into the run's folder, attach both to the MLflow run and close it."""
    path = run_dir / "report.html"
    write_report(read_record(record, RECORD), path)
    write_json(run_dir / "record.json", record)
    registry = Registry(settings)
    registry.log_files(mlflow_run, read_record(record, RECORD), path)
    registry.end_run(mlflow_run)
    return path
