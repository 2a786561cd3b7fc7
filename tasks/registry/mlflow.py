"""The record of runs and the model registry, in MLflow. Versions point to the store by reference; no bytes are copied.

A flow calls, in this order: ``check`` (cheap, before any work), ``start_run``, ``log_record``, ``register``,
``log_files``, ``end_run``. All can be repeated: a flow that starts again under its own run id continues its MLflow run.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elder import params
from elder.errors import UserError
from tasks.errors import Unreachable, hide_secrets, plain_errors
from tasks.registry.metrics import created_at, metrics_of, params_of, tags_of
from tasks.store.base import Published
from tasks.store.open import open_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHALLENGER = "challenger"
SCHEMES = ("sqlite:///", "postgresql", "mysql", "mssql", "http://", "https://")
# What one request to MLflow may carry, and how long a parameter's value may be.
METRICS, PARAMS = 1000, 100


def check(registry: params.Registry, store: params.Store) -> None:
    """Refuse a registry that cannot be reached, or one that could not point to the store.

    Raises:
        UserError: tracking is unreachable, or a tracking server is used with a local store, which it cannot read.
    """
    connect(registry)
    if registry.tracking_uri.startswith("http") and not store.url.startswith("s3://"):
        raise UserError(
            f"an MLflow server cannot read the local store {store.url!r}: set store.url to s3://bucket/prefix"
        )


def connect(registry: params.Registry) -> "MlflowClient":
    """Return an MLflow client after one successful request; an SQLite database is made where there is none.

    Raises:
        UserError: the tracking URI is not usable, or nothing answers there.
    """
    # MLflow's own default keeps trying an absent server for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Its server would send clients to the bucket itself, by a name that may be known to the server alone.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    # It would print the run's address on stdout, where --json promises one object.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    uri = _absolute(registry.tracking_uri)
    with plain_refusals(registry):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.get_experiment_by_name(registry.experiment)
    return client


def start_run(
    registry: params.Registry,
    run_id: str,
    tags: dict[str, str] | None = None,
    at: int | None = None,
) -> str:
    """Start the MLflow run of a flow's run, or continue it; return MLflow's id for it.

    Args:
        registry: where to record.
        run_id: the flow's own id, kept as the tag ``run_id`` and as the run's name.
        tags: further tags.
        at: when it started, in ms since 1970; None: now.
    """
    client = connect(registry)
    with plain_refusals(registry):
        experiment = _experiment(client, registry)
        found = _find_run(client, experiment, run_id)
        if found:
            client.update_run(found.run_id, "RUNNING")
            return found.run_id
        found = client.create_run(
            experiment, at, {"run_id": run_id, **(tags or {})}, run_name=run_id
        )
        return found.info.run_id


def find_run(registry: params.Registry, run_id: str) -> tuple[str, str] | None:
    """Return (MLflow's id, status) of the MLflow run of a flow's run, or None."""
    client = connect(registry)
    with plain_refusals(registry):
        found = _find_run(client, _experiment(client, registry), run_id)
    return (found.run_id, found.status) if found else None


def log_record(registry: params.Registry, mlflow_run: str, record: dict[str, Any]) -> None:
    """Log parameters, metrics with their standard errors, the layer weights by round, and tags.

    Metrics carry the record's time, so that MLflow takes those of a second call for the same ones.
    """
    client, made = connect(registry), created_at(record)
    from mlflow.entities import Metric, Param

    values = [Param(key, value) for key, value in params_of(record).items()]
    metrics = [Metric(key, value, made, step) for key, value, step in metrics_of(record)]
    with plain_refusals(registry):
        for start in range(0, len(values), PARAMS):
            client.log_batch(mlflow_run, params=values[start : start + PARAMS])
        for start in range(0, len(metrics), METRICS):
            client.log_batch(mlflow_run, metrics=metrics[start : start + METRICS])
        for key, value in tags_of(record).items():
            client.set_tag(mlflow_run, key, value)


def log_files(
    registry: params.Registry,
    mlflow_run: str,
    record: dict[str, Any],
    report: Path | None = None,
) -> None:
    """Attach record.json, layer_weights.json where weights were learnt, and the report, replacing older ones."""
    client = connect(registry)
    with plain_refusals(registry):
        client.log_text(mlflow_run, hide_secrets(json.dumps(record, indent=1)), "record.json")
        if record.get("weights"):
            client.log_text(mlflow_run, json.dumps(record["weights"]), "layer_weights.json")
        if report is not None:
            client.log_artifact(mlflow_run, str(report))


def attached(registry: params.Registry, mlflow_run: str) -> set[str]:
    """Return the names of the files attached to an MLflow run."""
    client = connect(registry)
    with plain_refusals(registry):
        return {item.path for item in client.list_artifacts(mlflow_run)}


def register(
    registry: params.Registry, mlflow_run: str, record: dict[str, Any], published: Published
) -> str | None:
    """Register the published model as a new version with the alias ``challenger``, linked to the run.

    A second call for the same run and bytes returns the version that is there.

    Returns:
        The version, or None where the gate refused: the run is then recorded and nothing is registered.
    """
    gate = record["gate"]
    if gate["mode"] == "on" and not gate["passed"]:
        return None
    client, name = connect(registry), registry.name
    with plain_refusals(registry):
        _ensure_name(client, name)
        same = client.search_model_versions(f"name = '{name}' and run_id = '{mlflow_run}'")
        version = next(
            (v.version for v in same if v.tags.get("digest") == published.digest), None
        )
        if version is None:
            tags = tags_of(record) | {"run_id": record["run_id"], "digest": published.digest}
            version = client.create_model_version(
                name, published.url, run_id=mlflow_run, tags=tags
            ).version
        client.set_registered_model_alias(name, CHALLENGER, version)
    return str(version)


def end_run(
    registry: params.Registry, mlflow_run: str, status: str = "FINISHED", at: int | None = None
) -> None:
    """Close the run as FINISHED, FAILED or KILLED, at a time in ms since 1970 or now."""
    client = connect(registry)
    with plain_refusals(registry):
        client.set_terminated(mlflow_run, status, at)


def end_failed(registry: params.Registry, run_id: str, status: str = "FAILED") -> None:
    """Close what a failed flow's run left open; nothing, if it failed before it got to MLflow."""
    client = connect(registry)
    with plain_refusals(registry):
        found = _find_run(client, _experiment(client, registry), run_id)
        if found and found.status == "RUNNING":
            client.set_terminated(found.run_id, status)


def resolve(uri: str, target: Path, registry: params.Registry, store: params.Store) -> Path:
    """Copy a registered model to a new local folder, every sha256 checked.

    Args:
        uri: ``models:/name@alias`` or ``models:/name/3``.
        target: folder to make; one that holds exactly this model already is returned as it is.
        registry: where the name is looked up.
        store: endpoint and region with which an S3 source is read.

    Raises:
        UserError: the URI is malformed, names nothing, or the bytes are damaged or not this project's.
    """
    source, prefix = open_model(source_of(uri, registry), store.endpoint, store.region)
    return source.fetch(prefix, target)


def source_of(uri: str, registry: params.Registry) -> str:
    """Return the URL in the store that ``models:/name@alias`` or ``models:/name/3`` means right now.

    Raises:
        UserError: the URI is malformed, or names nothing.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if not found:
        raise UserError(
            f"{uri}: name a registered model as models:/name@alias or models:/name/3"
        )
    name, alias, version = found.groups()
    client = connect(registry)
    with plain_refusals(registry):
        entry = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, version)
        )
    return str(entry.source)


def holder(registry: params.Registry, alias: str) -> tuple[str, str] | None:
    """Return (version, URL in the store) of the version that has an alias right now, or None if none has."""
    from mlflow.exceptions import MlflowException

    client, name = connect(registry), registry.name
    with plain_refusals(registry):
        try:
            version = client.get_registered_model(name).aliases.get(alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return (
            (str(version), str(client.get_model_version(name, str(version)).source))
            if version
            else None
        )


def _find_run(client: "MlflowClient", experiment: str, run_id: str) -> Any:
    """Return MLflow's info on the run of a flow's run, or None."""
    found = client.search_runs([experiment], f"tags.run_id = '{run_id}'", max_results=1)
    return found[0].info if found else None


def _experiment(client: "MlflowClient", registry: params.Registry) -> str:
    """Return the id of the experiment, made where it is missing; artifacts of an SQLite registry lie beside it."""
    from mlflow.exceptions import MlflowException

    uri, location = _absolute(registry.tracking_uri), None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    found = client.get_experiment_by_name(registry.experiment)
    if found is None:
        try:
            return client.create_experiment(registry.experiment, artifact_location=location)
        except MlflowException as error:  # another process was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(registry.experiment)
    return str(found and found.experiment_id)


def _ensure_name(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _absolute(uri: str) -> str:
    """Make the path of an SQLite URI absolute, so that other working directories find the same database."""
    if not uri.startswith(SCHEMES):
        raise UserError(
            f"registry.tracking_uri {hide_secrets(uri)!r}: name sqlite:///FILE, a database (postgresql://...) or the"
            " http(s):// address of an MLflow server"
        )
    if not uri.startswith("sqlite:///"):
        return uri
    path = Path(uri.removeprefix("sqlite:///")).absolute()
    with plain_errors(path):  # MLflow itself would retry a hopeless file for minutes
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as handle:
            handle.seek(0)
            if handle.read(16) not in (b"", b"SQLite format 3\0"):
                raise UserError(
                    f"registry.tracking_uri: {path} is not an SQLite database: name another file"
                )
    return f"sqlite:///{path}"


@contextmanager
def plain_refusals(registry: params.Registry) -> Iterator[None]:
    """Turn MLflow's and the database's refusals into a UserError of one sentence without secrets.

    The cause is left out of the chain: its text may hold the address with its password.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    place = f"MLflow at {hide_secrets(registry.tracking_uri)}"
    try:
        yield
    except MlflowException as error:
        text = hide_secrets(str(error.message)).strip().partition("\n")[0][:300]
        if "error code 401" in text:
            raise UserError(
                f"{place}: it does not know this user: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from None
        if "Max retries exceeded" in text or "failed with exception" in text:
            raise Unreachable(
                f"{place}: it cannot be reached: start it, or correct registry.tracking_uri"
            ) from None
        raise UserError(f"{place}: {text}") from None
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise UserError(
            f"{place}: the database cannot be used ({type(error).__name__}): check it and its address"
        ) from None
