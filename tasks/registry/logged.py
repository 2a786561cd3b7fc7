"""The logged model of a run: where MLflow's users look up what a model is worth. Its bytes stay in the store.

A run has one, registered or not. MLflow keeps metrics of a model apart from those of the run, so they are logged for
both; of a registered version the tag ``logged_model`` leads there, and MLflow's own tag leads back.
"""

import json
import re
from typing import TYPE_CHECKING

from elder.record import Record
from tasks.registry.metrics import tags_of
from tasks.store.base import Published

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

TAG = "logged_model"  # of a version: MLflow's id of the logged model
KIND = "causal-lm"
NOT_IN_NAMES = "[/:.%\"']"  # of logged models, while registered ones may have dots


def find_logged_model(
    client: "MlflowClient", experiment: str, mlflow_run: str
) -> "LoggedModel | None":
    """Return the logged model of an MLflow run, the first of several; None where there is none.

    Args:
        client: of MLflow.
        experiment: MLflow's id of it.
        mlflow_run: MLflow's id of the run.
    """
    found = client.search_logged_models(
        [experiment],
        f"source_run_id = '{mlflow_run}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
    )
    return found[0] if found else None


def ensure_logged_model(
    client: "MlflowClient",
    experiment: str,
    mlflow_run: str,
    record: Record,
    name: str,
) -> str:
    """Make the logged model of an MLflow run where it is missing; returns MLflow's id of it.

    Args:
        client: of MLflow.
        experiment: MLflow's id of it.
        mlflow_run: MLflow's id of the run.
        record: of the run.
        name: registered model that the run was made for.
    """
    there = find_logged_model(client, experiment, mlflow_run)
    if there is None:
        tags = tags_of(record) | {"run_id": record.run_id}
        # MLflow's word for a model whose files it does not keep
        tags["mlflow.model.isExternal"] = "true"
        there = client.create_logged_model(
            experiment,
            re.sub(NOT_IN_NAMES, "_", name),
            mlflow_run,
            tags,
            model_type=KIND,
        )
    if there.status != "READY":
        client.finalize_logged_model(there.model_id, "READY")
    return str(there.model_id)


def tell_place(
    client: "MlflowClient", model_id: str, published: Published, name: str, version: str
) -> None:
    """Say at a logged model which version it was registered as, and where its bytes lie."""
    versions = json.dumps([{"name": name, "version": int(version)}])
    tags = {"mlflow.modelVersions": versions, "digest": published.digest}
    client.set_logged_model_tags(model_id, tags | {"url": published.url})
