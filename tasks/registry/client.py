"""The record of runs and the model registry, in MLflow. Versions point to the store by reference; no bytes are copied.

A flow uses, in this order: ``check_store`` (cheap, before any work), ``start_run``, ``log_record``,
``register_version``, ``log_files``, ``end_run``. All can be repeated: a flow that starts again under its own run id
continues its MLflow run.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from elder import params
from elder.errors import UserError
from elder.files import read_json
from elder.record import Json, Record, plain
from tasks.provenance.bom import RECORD
from tasks.provenance.keys import Signer
from tasks.record_file import record_text
from tasks.registry.attached import TAG as ATTACHED_TAG
from tasks.registry.attached import sign_attached
from tasks.registry.connection import connect, plain_refusals, sqlite_file
from tasks.registry.logged import TAG as LOGGED_TAG
from tasks.registry.logged import ensure_logged_model, find_logged_model, tell_place
from tasks.registry.metrics import created_at, metrics_of, params_of, tags_of
from tasks.registry.registration import TAG, sign_registration
from tasks.retry import patient
from tasks.store.base import Published
from tasks.store.manifest import fingerprint

if TYPE_CHECKING:
    from mlflow.entities import Run, RunInfo
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
WEIGHTS_FILE = "layer_weights.json"  # attached to a run
# What one request to MLflow may carry.
METRICS, PARAMS = 1000, 100
OLDEST = ["attributes.start_time ASC"]


@dataclass(frozen=True)
class Reference:
    """What ``NAME@ALIAS`` or ``NAME/VERSION`` names; one of ``alias`` and ``version`` is None."""

    name: str
    alias: str | None
    version: str | None


def parse_reference(text: str) -> Reference | None:
    """Read ``NAME@ALIAS`` or ``NAME/VERSION``, with or without ``models:/`` before it; None where it is neither."""
    match = re.fullmatch(r"(?:models:/)?([^/@]+)(?:@([^/@]+)|/(\d+))", text)
    return Reference(*match.groups()) if match else None


class Registry:
    """The registered model ``settings.name``, and the runs that made its versions; connects once, when it is made.

    A client does not cross processes: whoever works in another one makes his own from the settings.

    Args:
        settings: MLflow's address, the experiment, and the registered model's name.

    Raises:
        UserError: the address is not usable, or nothing answers there.
    """

    def __init__(self, settings: params.Registry) -> None:
        self.settings = settings
        self.name = settings.name
        self.client = connect(settings)

    def refusals(self) -> AbstractContextManager[None]:
        """Turn what MLflow refuses inside the block into a UserError of one sentence."""
        return plain_refusals(self.settings)

    def check_store(self, store: params.Store) -> None:
        """Refuse a store that this registry could not point to.

        Raises:
            UserError: a tracking server is used with a local store, which it cannot read.
        """
        served = self.settings.tracking_uri.startswith("http")
        if served and not store.url.startswith("s3://"):
            raise UserError(
                "an MLflow server cannot read a local store: set store.url to s3://bucket/prefix"
            )

    # Runs

    @patient
    def start_run(
        self, run_id: str, tags: dict[str, str] | None = None, at: int | None = None
    ) -> str:
        """Start the MLflow run of a flow's run, or continue it; return MLflow's id for it.

        Where an answer gets lost, all is looked for anew: what was made before that is not made twice.

        Args:
            run_id: the flow's own id, kept as the tag ``run_id`` and as the run's name.
            tags: further tags.
            at: when it started, in ms since 1970; None: now.
        """
        with self.refusals():
            there = self._run_info(run_id)
            if there:
                self.client.update_run(there.run_id, "RUNNING")
                return there.run_id
            own = {"run_id": run_id, **(tags or {})}
            made = self.client.create_run(self._experiment, at, own, run_name=run_id)
            return made.info.run_id

    def find_run(self, run_id: str) -> tuple[str, str] | None:
        """Return (MLflow's id, status) of the MLflow run of a flow's run, or None."""
        with self.refusals():
            there = self._run_info(run_id)
        return (there.run_id, there.status) if there else None

    def log_record(self, mlflow_run: str, record: Record) -> None:
        """Log parameters, metrics with their standard errors, the layer weights by round, and tags.

        Metrics are logged for the run and for its logged model. They carry the record's time, so that MLflow takes
        those of a second call for the same ones.
        """
        from mlflow.entities import Metric, Param, RunTag

        made = created_at(record)
        values = [Param(key, value) for key, value in params_of(record).items()]
        tags = [RunTag(key, value) for key, value in tags_of(record).items()]
        with self.refusals():
            model = ensure_logged_model(
                self.client, self._experiment, mlflow_run, record, self.name
            )
            metrics = [
                Metric(key, value, made, step, model_id=model)
                for key, value, step in metrics_of(record)
            ]
            for start in range(0, len(values), PARAMS):
                self.client.log_batch(mlflow_run, params=values[start : start + PARAMS])
            for start in range(0, len(metrics), METRICS):
                self.client.log_batch(
                    mlflow_run, metrics=metrics[start : start + METRICS]
                )
            self.client.log_batch(mlflow_run, tags=tags)

    def log_files(
        self,
        mlflow_run: str,
        record: Record,
        report: Path | None = None,
        signer: Signer | None = None,
    ) -> None:
        """Attach record.json, layer_weights.json where weights were learnt, and the report, replacing older ones.

        Args:
            mlflow_run: MLflow's id of the run.
            record: of the run.
            report: HTML file.
            signer: signs what was attached; None: nobody will believe it.
        """
        texts = {RECORD: record_text(record)}
        if record.weights:
            texts[WEIGHTS_FILE] = json.dumps(plain(record.weights))
        files = {name: text.encode() for name, text in texts.items()}
        with self.refusals():
            for name, text in texts.items():
                self.client.log_text(mlflow_run, text, name)
            if report is not None:
                self.client.log_artifact(mlflow_run, str(report))
                files[report.name] = report.read_bytes()
            if signer is not None:
                tag = sign_attached(record.run_id, files, signer)
                self.client.set_tag(mlflow_run, ATTACHED_TAG, tag)

    def attached(self, mlflow_run: str) -> set[str]:
        """Return the names of the files attached to an MLflow run."""
        with self.refusals():
            return {item.path for item in self.client.list_artifacts(mlflow_run)}

    def attached_json(self, mlflow_run: str, name: str) -> Json:
        """Return the content of a JSON file attached to an MLflow run.

        Raises:
            UserError: MLflow does not have it, or it is not JSON.
        """
        with self._attached_file(mlflow_run, name) as path:
            return read_json(path, f"{name} of the MLflow run")

    def attached_digest(self, mlflow_run: str, name: str) -> str:
        """Return the sha256 of a file attached to an MLflow run.

        Raises:
            UserError: MLflow does not have it.
        """
        with self._attached_file(mlflow_run, name) as path:
            return fingerprint(path).sha256

    @contextmanager
    def _attached_file(self, mlflow_run: str, name: str) -> Iterator[Path]:
        with self.refusals(), tempfile.TemporaryDirectory() as place:
            yield Path(self.client.download_artifacts(mlflow_run, name, place))

    def run(self, mlflow_run: str) -> "Run":
        """Return an MLflow run with its parameters, newest metrics and tags."""
        with self.refusals():
            return self.client.get_run(mlflow_run)

    def end_run(
        self, mlflow_run: str, status: str = "FINISHED", at: int | None = None
    ) -> None:
        """Close the run as FINISHED, FAILED or KILLED, at a time in ms since 1970 or now."""
        with self.refusals():
            self.client.set_terminated(mlflow_run, status, at)

    def end_failed(self, run_id: str, status: str = "FAILED") -> None:
        """Close what a failed flow's run left open; nothing, if it failed before it got to MLflow."""
        there = self.find_run(run_id)
        if there and there[1] == "RUNNING":
            self.end_run(there[0], status)

    # Versions

    @patient
    def register_version(
        self,
        mlflow_run: str,
        record: Record,
        published: Published,
        signer: Signer | None = None,
    ) -> str | None:
        """Register the published model as a new version with the alias ``challenger``, linked to the run.

        A second call for the same run and bytes returns the version that is there; so does another try, after an answer
        got lost.

        Args:
            mlflow_run: MLflow's id of the run.
            record: of the run.
            published: where the model lies.
            signer: signs that this number is this model; None: nobody will believe that it is.

        Returns:
            The version, or None where the gate refused: the run is then recorded and nothing is registered.
        """
        if record.gate.refused:
            return None
        with self.refusals():
            self.ensure_model()
            version = self._version_of(mlflow_run, published.digest)
            model = find_logged_model(self.client, self._experiment, mlflow_run)
            if version is None:
                own = {"run_id": record.run_id, "digest": published.digest}
                own |= {LOGGED_TAG: model.model_id} if model else {}
                made = self.client.create_model_version(
                    self.name,
                    published.url,
                    run_id=mlflow_run,
                    tags=tags_of(record) | own,
                )
                version = str(made.version)
            if model is not None:
                tell_place(self.client, model.model_id, published, self.name, version)
            if signer is not None:
                self.sign_version(version, published.digest, record.run_id, signer)
            self.client.set_registered_model_alias(self.name, CHALLENGER, version)
        return version

    def sign_version(
        self, version: str, digest: str, run_id: str, signer: Signer
    ) -> None:
        """Sign the registration of a version, unless it is signed already."""
        with self.refusals():
            if TAG not in self.client.get_model_version(self.name, version).tags:
                tag = sign_registration(self.name, version, digest, run_id, signer)
                self.client.set_model_version_tag(self.name, version, TAG, tag)

    def ensure_model(self) -> None:
        """Make the registered model where it is missing."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def look_up(self, wanted: Reference) -> "ModelVersion":
        """Return MLflow's entry of a version of any registered model.

        Raises:
            UserError: there is none.
        """
        with self.refusals():
            if wanted.alias:
                return self.client.get_model_version_by_alias(wanted.name, wanted.alias)
            return self.client.get_model_version(wanted.name, str(wanted.version))

    def source_of(self, uri: str) -> str:
        """Return the URL in the store that ``models:/name@alias`` or ``models:/name/3`` means right now.

        Raises:
            UserError: the URI is malformed, or names nothing.
        """
        wanted = parse_reference(uri) if uri.startswith("models:/") else None
        if wanted is None:
            raise UserError(
                f"{uri}: name a registered model as models:/name@alias or models:/name/3"
            )
        return str(self.look_up(wanted).source)

    def holder(self, alias: str) -> tuple[str, str] | None:
        """Return (version, URL in the store) of the version that has an alias right now, or None if none has."""
        version = self.aliases_and_tags()[0].get(alias)
        if version is None:
            return None
        with self.refusals():
            return version, str(
                self.client.get_model_version(self.name, version).source
            )

    def aliases_and_tags(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the aliases (version by name) and the tags of the model; none, where there is no such model."""
        from mlflow.exceptions import MlflowException

        with self.refusals():
            try:
                model = self.client.get_registered_model(self.name)
            except MlflowException as error:
                # a server with accounts denies all but its admin what is not there, too, yet lists what may be read
                denied = error.error_code == "PERMISSION_DENIED"
                if error.error_code != "RESOURCE_DOES_NOT_EXIST" and not denied:
                    raise
                wanted = f"name = '{self.name}'"
                if denied and self.client.search_registered_models(wanted):
                    raise
                return {}, {}
        aliases = {alias: str(version) for alias, version in model.aliases.items()}
        return aliases, model.tags

    def delete_version(self, version: str) -> None:
        """Take a version out of the registry; MLflow never gives its number again."""
        with self.refusals():
            self.client.delete_model_version(self.name, version)

    def _version_of(self, mlflow_run: str, digest: str) -> str | None:
        """Return the version that an MLflow run registered with these bytes, the first of several, or None."""
        wanted = f"name = '{self.name}' and run_id = '{mlflow_run}'"
        versions = self.client.search_model_versions(wanted)
        same = [one.version for one in versions if one.tags.get("digest") == digest]
        return str(min(same, key=int)) if same else None

    def _run_info(self, run_id: str) -> "RunInfo | None":
        """Return MLflow's info on the run of a flow's run, or None."""
        wanted = f"tags.run_id = '{run_id}'"
        runs = self.client.search_runs(
            [self._experiment], wanted, max_results=1, order_by=OLDEST
        )
        return runs[0].info if runs else None

    @cached_property
    def _experiment(self) -> str:
        """Return the id of the experiment, made where it is missing; artifacts of an SQLite registry lie beside it."""
        from mlflow.exceptions import MlflowException

        name = self.settings.experiment
        there = self.client.get_experiment_by_name(name)
        if there is None:
            database = sqlite_file(self.settings.tracking_uri)
            location = (database.parent / "mlartifacts").as_uri() if database else None
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException as error:  # another process was faster
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                there = self.client.get_experiment_by_name(name)
        return str(there and there.experiment_id)
