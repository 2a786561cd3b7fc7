"""A registered version as those use it who know MLflow alone: they load it, serve it, and look up what it is worth."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import httpx
import mlflow
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from elder import params
from tasks.audit.run import audit
from tasks.registry.flavour import faults
from tests.flows.waiting import wait_for
from tests.tasks.audit.conftest import publish
from tests.tasks.audit.published import Version, broken, decide, words

PATIENCE = (
    300  # seconds that MLflow may take to serve on a machine with much else to do
)
REQUEST: dict[str, Any] = {"inputs": ["a b", "c"], "params": {"max_new_tokens": 3}}


def greedy(model: Any) -> list[str]:
    """Return what a model makes of the request, by transformers alone."""
    texts, tokenizer = [], words()
    for text in REQUEST["inputs"]:
        tokens = tokenizer(text, return_tensors="pt")
        made = model.generate(**tokens, max_new_tokens=3, do_sample=False)
        new = made[0, tokens["input_ids"].shape[1] :]
        texts.append(text + tokenizer.decode(new, skip_special_tokens=True))
    return texts


@pytest.fixture
def _tracked(settings: params.Params) -> Iterator[None]:
    """Point MLflow where a user would, in this process."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            patched.setenv(name, settings.registry.tracking_uri)
        mlflow.set_tracking_uri(settings.registry.tracking_uri)
        yield
        mlflow.set_tracking_uri("")


@pytest.mark.usefixtures("_tracked")
def test_mlflow_loads_the_champion_from_a_local_store(
    settings: params.Params, root: Path, version: Version
) -> None:
    decide(version)
    name = f"models:/{version.name}@champion"
    pipeline = mlflow.transformers.load_model(name)
    tokens = torch.tensor([[1, 2, 3]])
    dense = AutoModelForCausalLM.from_pretrained(version.place)
    assert torch.equal(pipeline.model(tokens).logits, dense(tokens).logits)
    assert pipeline.tokenizer("c a")["input_ids"] == [3, 1]

    generic = mlflow.pyfunc.load_model(name)
    assert generic.predict(["a b", "c"], params=REQUEST["params"]) == greedy(dense)
    example = generic.metadata.load_input_example(version.place)
    assert len(generic.predict(example)) == 1
    # MLflow left a note in the store's folder, and nothing else
    assert (version.place / "registered_model_meta").is_file()
    found = audit(settings, root, f"{version.name}@champion")
    assert (found.broken, found.unknown) == ([], [])


@pytest.fixture
def in_s3(
    settings: params.Params,
    root: Path,
    shallow: tuple[LlamaForCausalLM, dict[str, Any]],
    server: str,
    credentials: None,
    tmp_path: Path,
) -> Version:
    client = boto3.client("s3", endpoint_url=server, region_name="us-east-1")
    name = tmp_path.name.replace("_", "-")
    client.create_bucket(Bucket=name)
    store = params.Store(url=f"s3://{name}/x", endpoint=server, region="us-east-1")
    named = settings.registry.model_copy(update={"name": name})
    own = settings.model_copy(update={"registry": named, "store": store})
    record = shallow[1] | {"run_id": name}
    record["lineage"] = record["lineage"] | {"params": own.model_dump(mode="json")}
    return publish(own, root, (shallow[0], record), tmp_path / "made")


@pytest.mark.usefixtures("_tracked")
def test_mlflow_loads_a_version_from_s3(
    in_s3: Version,
    server: str,
    shallow: tuple[LlamaForCausalLM, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", server)
    model = mlflow.pyfunc.load_model(f"models:/{in_s3.name}@challenger")
    said = model.predict(REQUEST["inputs"], params=REQUEST["params"])
    assert said == greedy(shallow[0])


@pytest.mark.slow
def test_mlflow_serves_a_version_from_s3(
    in_s3: Version,
    server: str,
    shallow: tuple[LlamaForCausalLM, dict[str, Any]],
    tmp_path: Path,
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    uri = in_s3.settings.registry.tracking_uri
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--port", str(port)]
    command += ["-m", f"models:/{in_s3.name}@challenger", "--env-manager", "local"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ
            | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_S3_ENDPOINT_URL": server}
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx.get(f"{address}/ping").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, "MLflow's server", PATIENCE)
        said = httpx.post(f"{address}/invocations", json=REQUEST, timeout=60)
    finally:
        os.killpg(process.pid, 15)
        process.wait()
    assert said.status_code == 200, said.text
    assert said.json()["predictions"] == greedy(shallow[0])


def test_metrics_are_found_under_the_logged_model(
    settings: params.Params, root: Path, version: Version
) -> None:
    client = version.client
    entry = client.get_model_version(version.name, version.number)
    experiment = client.get_run(version.run).info.experiment_id
    better = client.search_logged_models(
        [experiment], "metrics.`speed/ratio/prompt_speedup` > 1.4"
    )
    model = client.get_logged_model(entry.tags["logged_model"])
    assert model.model_id in {one.model_id for one in better}
    assert model.source_run_id == version.run
    metrics = {point.key: point.value for point in model.metrics}
    assert metrics == client.get_run(version.run).data.metrics
    assert json.loads(model.tags["mlflow.modelVersions"]) == [
        {"name": version.name, "version": int(version.number)}
    ]
    # what somebody measures later is his own; a number slipped in as the run's is found
    own = client.create_run(experiment).info.run_id
    client.log_metric(own, "toxicity", 0.5, model_id=model.model_id)
    assert broken(settings, root, version) == {}
    client.log_batch(
        version.run,
        metrics=[mlflow.entities.Metric("x", 1.0, 1, 0, model_id=model.model_id)],
    )
    assert "metrics in MLflow" in broken(settings, root, version)


def code(tree: dict[str, Any]) -> None:
    tree["flavors"]["python_function"]["code"] = "code"


def loader(tree: dict[str, Any]) -> None:
    tree["flavors"]["python_function"]["loader_module"] = "evil"


def pickle(tree: dict[str, Any]) -> None:
    tree["flavors"]["python_function"]["python_model"] = "python_model.pkl"


def trusting(tree: dict[str, Any]) -> None:
    tree["flavors"]["transformers"]["pipeline_model_type"] = "EvilForCausalLM"


def elsewhere(tree: dict[str, Any]) -> None:
    tree["flavors"]["transformers"]["source_model_revision"] = "main"


def another(tree: dict[str, Any]) -> None:
    tree["flavors"]["sklearn"] = {"pickled_model": "model.pkl"}


def prompted(tree: dict[str, Any]) -> None:
    tree["metadata"] = {"prompt_template": "{prompt}"}


CHANGES = [code, loader, pickle, trusting, elsewhere, another, prompted]


def test_what_mlmodel_may_not_say_is_named(
    settings: params.Params, root: Path, version: Version
) -> None:
    path = version.place / "MLmodel"
    text = path.read_text()
    assert faults(text) == []
    told = {}
    for change in CHANGES:
        tree = yaml.safe_load(text)
        change(tree)
        told[change.__name__] = faults(yaml.safe_dump(tree))
    assert {name: len(found) for name, found in told.items()} == {
        change.__name__: 1 for change in CHANGES
    }
    assert "python_model.pkl" in told["pickle"][0]
    assert faults("[") == faults("flavors: 3") == ["it cannot be read"]
    path.write_text(text.replace("mlflow.transformers", "evil"))
    waived = ["signature", "registration"]
    assert "MLflow model" in broken(settings, root, version, waive=waived)


def test_an_older_version_without_mlmodel_still_holds(
    settings: params.Params,
    root: Path,
    publish_version: Callable[..., Version],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tasks.record.write_flavour", lambda folder, record: None)
    assert broken(settings, root, publish_version()) == {}
