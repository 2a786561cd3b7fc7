"""Put the run's record together from what its tasks returned, and tell it: to the registry, the report and the card."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import task

from elder import params
from elder.evaluation.gate import judge as judge_rules
from elder.files import read_json, write_json, write_text
from elder.record import (
    Champion,
    CompressionRecord,
    DataFacts,
    Json,
    Lineage,
    Record,
    Row,
    Speed,
    Verdict,
    plain,
    read_record,
)
from elder.report.card import model_card
from elder.report.html import write_report
from tasks.provenance.bom import RECORD, write_bom
from tasks.provenance.keys import signer_if_any
from tasks.provenance.signing import SIGNATURE, sign
from tasks.record_file import write_record
from tasks.registry.champion import champion_of
from tasks.registry.client import Registry
from tasks.registry.flavour import write_flavour
from tasks.registry.ledger import open_ledger
from tasks.retry import try_again
from tasks.run.marks import read_mark
from tasks.run.run import Run
from tasks.store.base import Published
from tasks.store.open import configured_store


@dataclass(frozen=True)
class Findings:
    """What a run made, measured and decided.

    Attributes:
        made: what the compression found and took.
        data: where the data came from.
        origin: where the code came from, and who started the run.
        rows: the dense model, the candidate, and the baselines.
        speed: of the dense model and the candidate.
        champion: the present one, if there is one.
        verdict: of the gate.
        energy: that the run took, where it was measured.
        seconds: that this attempt took.
    """

    made: CompressionRecord
    data: DataFacts
    origin: Lineage
    rows: list[Row]
    speed: Speed
    champion: Champion | None
    verdict: Verdict
    energy: dict[str, Json] | None
    seconds: float


@task(name="champion", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def present_champion(settings: params.Params, root: Path) -> Champion | None:
    """Read the champion's numbers from the record that lies beside its weights; see `champion_of`."""
    return champion_of(open_ledger(settings, root, settings.registry.name))


@task(name="gate")
def judge(
    settings: params.Gate,
    dense: Row,
    candidate: Row,
    speed: Speed,
    champion: Champion | None,
) -> Verdict:
    """Judge the candidate by the rules of the gate."""
    return judge_rules(settings, dense, candidate, speed, champion)


@task(name="settle")
def settle(run: Run, findings: Findings) -> Record:
    """Write down what is going to be published, or return what an earlier attempt of the same run wrote.

    A run that was killed while it published then publishes the same bytes again, and registers no second version.
    """
    if read_mark(run.record) is None:
        write_record(put_together(run, findings), run.record)
    return read_record(read_mark(run.record), str(run.record))


def put_together(run: Run, findings: Findings) -> Record:
    """Return the record of a run."""
    tree = plain(findings.made)
    # not the folder that it was found in
    tree["model"]["name"] = run.settings.model.name
    tree["lineage"] |= plain(findings.origin)
    tree["lineage"]["params"] = run.settings.model_dump(mode="json")
    champion, verdict = findings.champion, findings.verdict
    tree |= {
        "run_id": run.run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(findings.seconds, 1),
        "rows": [plain(one) for one in findings.rows],
        "speed": plain(findings.speed),
        "champion": plain(champion) if champion else None,
        "gate": plain(verdict),
        "energy": findings.energy,
        "data": plain(findings.data),
    }
    return Record.model_validate(tree)


@task(name="store", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def publish(run: Run, record: Record) -> Published:
    """Put all that is known into the model folder, sign it, and put it into the store."""
    return publish_folder(run.model, record, run.settings, run.root)


def publish_folder(
    folder: Path, record: Record, settings: params.Params, root: Path
) -> Published:
    """Complete a model folder with card, record, MLmodel and bill of materials, sign it, and put it into the store.

    Args:
        folder: with the checkpoint and ``elder.json``.
        record: of the run that made it.
        settings: signing, store, and the registered model's name.
        root: folder that relative paths start from.
    """
    told = plain(record)
    write_text(folder / "README.md", model_card(record))
    known = read_json(folder / "elder.json")
    known |= {key: told[key] for key in ("run_id", "model", "lineage")}
    write_json(folder / "elder.json", known)
    write_record(record, folder / RECORD)
    write_flavour(folder, record)
    write_bom(folder, record, leave_out=(SIGNATURE,))
    sign(folder, settings.signing, root)
    return configured_store(settings.store, root).publish(
        folder, settings.registry.name
    )


@task(name="register", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def register_run(
    record: Record, published: Published, settings: params.Params, root: Path
) -> tuple[str, str | None]:
    """Record the run in MLflow and, where the gate lets it pass, register the model; returns (MLflow run, version)."""
    registry = Registry(settings.registry)
    run = registry.start_run(record.run_id)
    registry.log_record(run, record)
    signer = signer_if_any(settings.signing, root)
    return run, registry.register_version(run, record, published, signer)


@task(name="report", retries=2, retry_delay_seconds=5, retry_condition_fn=try_again)
def report(
    record: Record, path: Path, mlflow_run: str, settings: params.Params, root: Path
) -> None:
    """Write the report, attach it and the record to the MLflow run, sign what is attached, and close the run.

    Args:
        record: with the version and the place of the published model, which the report shows.
        path: HTML file to write.
        mlflow_run: MLflow's id of the run.
        settings: where it is recorded, and who signs.
        root: folder that relative paths start from.
    """
    write_report(record, path)
    registry = Registry(settings.registry)
    signer = signer_if_any(settings.signing, root)
    registry.log_files(mlflow_run, record, path, signer)
    registry.end_run(mlflow_run)


def with_outcome(
    record: Record, published: Published, version: str | None, report_file: Path
) -> Record:
    """Return a record with what became of the run, which cannot stand in the published copy.

    Args:
        record: of the run.
        published: where the model lies.
        version: that was registered, if any.
        report_file: of the run.
    """
    outcome: dict[str, Json] = {
        "artifact": published.model_dump(exclude={"uploaded_bytes"}),
        "model_version": version,
        "report": str(report_file),
    }
    return record.model_copy(update=outcome)
