"""What an audit looks at in the registry: whether what stands there of a run is what the record says."""

import sys
from collections.abc import Collection, Mapping

from elder.record import Json
from tasks import record_file
from tasks.audit.evidence import Broken, Check, Evidence
from tasks.provenance.bom import RECORD
from tasks.provenance.bundle import BadSignature
from tasks.registry.attached import TAG, check_attached
from tasks.registry.logged import TAG as LOGGED_TAG
from tasks.registry.logged import find_logged_model
from tasks.registry.metrics import metrics_of, params_of, tags_of

OUTCOME = set(record_file.OUTCOME)  # known only after the folder was published
LARGEST = sys.float_info.max  # what MLflow's databases make of an infinite number
MANY = 5  # names in a sentence; more are counted
Points = dict[str, set[tuple[int, float]]]  # (step, value) by name of the metric


def attached_record(evidence: Evidence) -> str:
    """Compare the record attached to the MLflow run with the one in the store, key by key as JSON."""
    stored = evidence.record_tree
    _ = evidence.record  # must be one
    attached = evidence.attached(RECORD)
    if not isinstance(attached, dict):
        raise Broken(f"{RECORD} of the MLflow run is no record of a run")
    keys = sorted({*stored, *attached} - OUTCOME)
    differing = [key for key in keys if stored.get(key) != attached.get(key)]
    if OUTCOME & set(attached):
        differing += _wrong_outcome(attached, evidence)
    if differing:
        names = some(differing)
        raise Broken(
            f"{RECORD} of the MLflow run differs from the stored one in {names}"
        )
    run = evidence.run.info.run_id
    return f"{RECORD} of MLflow run {run} says the same as the stored one"


def _wrong_outcome(attached: dict[str, Json], evidence: Evidence) -> list[str]:
    """Compare what earlier versions attached beyond the stored record: where the model lies, and its version."""
    wrong = []
    artifact = attached.get("artifact")
    place = (
        (artifact.get("url"), artifact.get("digest"))
        if isinstance(artifact, dict)
        else ()
    )
    if place != (evidence.source, evidence.tags.get("digest")):
        wrong.append("artifact")
    if str(attached.get("model_version")) != evidence.version:
        wrong.append("model_version")
    return wrong


def logged_params(evidence: Evidence) -> str:
    """Compare the parameters of the MLflow run with the record's."""
    wanted = params_of(evidence.record)
    return _same("parameters", wanted, dict(evidence.run.data.params))


def logged_metrics(evidence: Evidence) -> str:
    """Compare every metric of the MLflow run and of its logged model, step by step, with the record's numbers."""
    wanted: Points = {}
    for key, value, step in metrics_of(evidence.record):
        bounded = max(-LARGEST, min(LARGEST, value))
        wanted.setdefault(key, set()).add((step, bounded))
    of_model = _of_model(evidence)
    if of_model is not None:
        _same("metrics of the logged model", wanted, of_model)
    return _same("metrics", wanted, _logged(evidence))


def version_tags(evidence: Evidence) -> str:
    """Compare the tags of the version and of its run with the record; further ones, such as promotions', may be."""
    record = evidence.record
    own = tags_of(record) | {"run_id": record.run_id}
    for title, tags in (("version", evidence.tags), ("run", evidence.run.data.tags)):
        differing = [key for key, value in own.items() if tags.get(key) != value]
        if differing:
            raise Broken(
                f"tags of the {title} differ from the record: {some(differing)}"
            )
    return f"{len(own)} tags of version and run follow from the record"


def report(evidence: Evidence) -> str:
    """Compare what is attached to the MLflow run, its report above all, with the signed list of it."""
    run, registry = evidence.run, evidence.registry
    run_id = evidence.record.run_id
    try:
        wanted = check_attached(run.data.tags.get(TAG), run_id, evidence.trust)
    except BadSignature as error:
        raise Broken(str(error)) from None
    present = registry.attached(run.info.run_id)
    faults = []
    for name, sha256 in wanted.items():
        if name not in present:
            faults.append(f"{name} was attached and is missing")
        elif registry.attached_digest(run.info.run_id, name) != sha256:
            faults.append(f"{name} is not what was attached")
    faults += [f"{name} was not attached by the run" for name in present - set(wanted)]
    if faults:
        raise Broken(f"of the MLflow run's files, {'; '.join(sorted(faults))}")
    return f"{some(sorted(wanted))} are as the run attached and signed them"


def some(names: list[str]) -> str:
    """List names in a sentence: the first few, and how many more there are."""
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def _logged(evidence: Evidence) -> Points:
    """Return all points of all metrics of the MLflow run; step -1 stands for a newest value that no point has."""
    run, registry = evidence.run, evidence.registry
    points: Points = {}
    with registry.refusals():
        for key, latest in run.data.metrics.items():
            history = registry.client.get_metric_history(run.info.run_id, key)
            points[key] = {(point.step, point.value) for point in history}
            if latest not in {value for _, value in points[key]}:
                points[key].add((-1, latest))
    return points


def _of_model(evidence: Evidence) -> Points | None:
    """Return all points of the run's logged model, without those that others measured since.

    None: earlier code made none.
    """
    registry, info = evidence.registry, evidence.run.info
    with registry.refusals():
        model = find_logged_model(registry.client, info.experiment_id, info.run_id)
    if model is None and LOGGED_TAG in evidence.tags:
        raise Broken("MLflow has lost the logged model of the run")
    if model is None:
        return None
    points: Points = {}
    for point in model.metrics or []:
        if point.run_id == info.run_id:
            points.setdefault(point.key, set()).add((point.step, point.value))
    return points


def _same(title: str, wanted: Mapping[str, Json], logged: Mapping[str, Json]) -> str:
    keys: Collection[str] = wanted.keys() | logged.keys()
    differing = sorted(key for key in keys if wanted.get(key) != logged.get(key))
    if differing:
        raise Broken(
            f"{title} of the MLflow run differ from the record: {some(differing)}"
        )
    return f"{len(wanted)} {title} of the MLflow run are those of the record"


MLFLOW_CHECKS: dict[str, Check] = {
    "record in MLflow": attached_record,
    "parameters in MLflow": logged_params,
    "metrics in MLflow": logged_metrics,
    "tags": version_tags,
    "report": report,
}
