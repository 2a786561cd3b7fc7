"""The registry on MLflow with SQLite, its versions in a local store and in S3 over HTTP."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from elder import params
from elder.errors import UserError
from elder.record import Record
from tasks.registry.client import Registry
from tasks.store.open import open_store

SECRET = "hunter2secret"
LOAD = """
import sys
import mlflow, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
mlflow.set_tracking_uri(sys.argv[1])
folder = mlflow.artifacts.download_artifacts(sys.argv[2])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
tokens = tokenizer("a b", return_tensors="pt")["input_ids"]
print(tokens.tolist(), model.config.num_hidden_layers, tuple(model(tokens).logits.shape))
"""
ROW = {
    "perplexity": {"in_domain": {"perplexity": 21.5, "stderr": 0.25, "tokens": 1000}},
    "tasks": {"blimp": {"metric": "acc", "value": 0.75, "stderr": 0.01, "version": 1}},
    "task_mean": {"value": 0.75, "stderr": 0.01},
    "removed": [1],
    "parameters": 4096,
    "peak_memory": None,
}
RECORD = {
    "run_id": "20261124-021500-ab12cd34",
    "created": "2026-11-24T02:15:00+00:00",
    "seconds": 12.5,
    "model": {"name": "tiny", "revision": None, "digest": "d" * 64, "num_layers": 3},
    "method": "default",
    "removed": [1],
    "weights": {
        "name": "layer weight",
        "rounds": [
            {"removed": [1], "values": [0.9, 0.1, 0.8]},
            {"removed": [2], "values": [0.7, None, 0.6]},
        ],
    },
    "rows": [
        {"name": "dense", "kind": "dense", **ROW},
        {"name": "default", "kind": "candidate", **ROW},
    ],
    "curve": [
        {"stage": "recover", "step": 1, "loss": 3.5, "lr": 0.001},
        {"stage": "recover", "step": 2, "loss": 3.25, "lr": 0.0},
    ],
    "speed": {
        "dense": {"prompt_ms": 8.0},
        "ratio": {"prompt_speedup": 1.25},
        "protocol": {"iterations": 20},
    },
    "gate": {
        "mode": "on",
        "passed": True,
        "rules": [
            {
                "rule": "perplexity: out of domain",
                "value": 1.21,
                "limit": 1.5,
                "passed": True,
                "reason": "It is within the most allowed.",
            }
        ],
    },
    "lineage": {
        "git_commit": "abc123",
        "git_clean": True,
        "data": {"calibration.txt": "m" * 32},
        "params": {},
    },
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> params.Registry:
    """Make the database once: its first start takes seconds."""
    made = params.Registry(
        name="tiny",
        tracking_uri=f"sqlite:///{tmp_path_factory.mktemp('a db')}/mlflow.db",
    )
    Registry(made)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Save a LLaMA of two layers with a tokenizer of four words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    size = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    LlamaForCausalLM(
        LlamaConfig(vocab_size=4, num_hidden_layers=2, **size)
    ).save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def record() -> dict:
    made = copy.deepcopy(RECORD)
    made["lineage"]["params"] = params.Params().model_dump()
    return made


def _load_elsewhere(
    settings: params.Registry, uri: str, folder: Path, env: dict | None = None
) -> str:
    """Load a registered model with transformers, in another process and another working directory."""
    command = [sys.executable, "-c", LOAD, settings.tracking_uri, uri]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def copied(registry: Registry, uri: str, target: Path, kept: params.Store) -> Path:
    """Copy the files that a name of the registry leads to."""
    source = registry.source_of(uri)
    return open_store(kept.url, kept.endpoint, kept.region).fetch(source, target)


def test_everything_of_a_record_is_on_the_run(settings, record, tmp_path):
    record["lineage"]["params"]["registry"]["tracking_uri"] = (
        f"postgresql://me:{SECRET}@db/x"
    )
    (tmp_path / "report.html").write_text("<html>")
    registry, typed = Registry(settings), Record.model_validate(record)
    run = registry.start_run(typed.run_id, {"started_by": "test"})
    registry.log_record(run, typed)
    registry.log_files(run, typed, tmp_path / "report.html")
    registry.end_run(run)

    client = registry.client
    data = client.get_run(run).data
    assert client.get_run(run).info.status == "FINISHED"
    assert data.params["select.ratio"] == "0.25"
    assert data.params["evaluate.tasks"] == '["blimp"]'
    assert data.params["registry.tracking_uri"] == "postgresql://db/x"
    assert data.metrics["default/perplexity/in_domain"] == 21.5
    assert data.metrics["default/perplexity/in_domain_stderr"] == 0.25
    assert data.metrics["dense/task/blimp"] == 0.75
    assert data.metrics["dense/task/blimp_stderr"] == 0.01
    assert data.metrics["dense/task_mean_stderr"] == 0.01
    assert data.metrics["dense/parameters"] == 4096
    assert data.metrics["speed/ratio/prompt_speedup"] == 1.25
    assert data.metrics["gate/perplexity_ out of domain"] == 1.21
    assert data.metrics["gate_limit/perplexity_ out of domain"] == 1.5
    assert data.metrics["gate_passed/perplexity_ out of domain"] == 1
    assert not any("protocol" in name or "peak" in name for name in data.metrics)
    assert [
        (m.step, m.value) for m in client.get_metric_history(run, "recover/loss")
    ] == [
        (1, 3.5),
        (2, 3.25),
    ]
    assert [
        (m.step, m.value) for m in client.get_metric_history(run, "layer_weight/00")
    ] == [
        (1, 0.9),
        (2, 0.7),
    ]
    assert [
        (m.step, m.value) for m in client.get_metric_history(run, "layer_weight/01")
    ] == [(1, 0.1)]
    assert (data.tags["run_id"], data.tags["started_by"]) == (record["run_id"], "test")
    assert (data.tags["gate"], data.tags["removed"], data.tags["git_commit"]) == (
        "passed",
        "[1]",
        "abc123",
    )
    assert json.loads(data.tags["data_digest"]) == {"calibration.txt": "m" * 32}

    names = {item.path for item in client.list_artifacts(run)}
    assert names == {"record.json", "layer_weights.json", "report.html"}
    saved = Path(
        client.download_artifacts(run, "record.json", str(tmp_path))
    ).read_text()
    assert json.loads(saved)["rows"] == record["rows"]
    assert SECRET not in saved
    # beside the database, wherever the flow was started
    assert (
        Path(settings.tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    ).is_dir()
    assert registry.start_run(typed.run_id) == run
    assert client.get_run(run).info.status == "RUNNING"


def test_registered_version_loads_in_transformers(settings, record, model, tmp_path):
    store = open_store(str(tmp_path / "a store #1"))
    published = store.publish(model, "tiny")
    registry, typed = Registry(settings), Record.model_validate(record)
    run = registry.start_run("local")
    version = registry.register_version(run, typed, published)
    assert registry.register_version(run, typed, published) == version

    entry = registry.client.get_model_version_by_alias("tiny", "challenger")
    assert (entry.version, entry.run_id, entry.source) == (
        int(version),
        run,
        published.url,
    )
    assert entry.tags["digest"] == published.digest
    assert entry.tags["run_id"] == record["run_id"]
    assert entry.tags["gate"] == "passed"
    assert "gate_failed" not in entry.tags
    assert registry.holder("challenger") == (version, published.url)
    assert registry.holder("champion") is None
    nobody = settings.model_copy(update={"name": "nobody"})
    assert Registry(nobody).holder("champion") is None
    assert entry.tags["git_commit"] == "abc123"
    assert (
        _load_elsewhere(settings, "models:/tiny@challenger", tmp_path)
        == "[[1, 2]] 2 (1, 2, 4)"
    )
    assert store.verify(published.url) == []

    kept = params.Store(url=str(tmp_path / "a store #1"))
    for uri in ("models:/tiny@challenger", f"models:/tiny/{version}"):
        folder = copied(registry, uri, tmp_path / uri.replace("/", "_"), kept)
        assert (folder / "model.safetensors").read_bytes() == (
            model / "model.safetensors"
        ).read_bytes()
    weights = Path(published.url) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match="damaged.*model.safetensors"):
        copied(registry, f"models:/tiny/{version}", tmp_path / "damaged", kept)


def test_registered_version_in_s3_loads_in_transformers(
    settings, record, model, tmp_path, monkeypatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1"
        ).create_bucket(Bucket="models")
        kept = params.Store(
            url="s3://models/night", endpoint=endpoint, region="us-east-1"
        )
        published = open_store(kept.url, kept.endpoint, kept.region).publish(
            model, "tiny"
        )
        registry = Registry(settings)
        run = registry.start_run("s3")
        version = registry.register_version(
            run, Record.model_validate(record), published
        )
        uri = f"models:/tiny/{version}"
        env = {"MLFLOW_S3_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        assert _load_elsewhere(settings, uri, tmp_path, env) == "[[1, 2]] 2 (1, 2, 4)"
        folder = copied(registry, uri, tmp_path / "copy", kept)
        assert (folder / "config.json").read_bytes() == (
            model / "config.json"
        ).read_bytes()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("mode", "tag"), [("on", None), ("dry-run", "dry-run: refused"), ("off", "off")]
)
def test_only_a_gate_that_is_on_refuses(settings, record, model, tmp_path, mode, tag):
    record["gate"] |= {"mode": mode, "passed": False}
    record["gate"]["rules"][0]["passed"] = False
    named = settings.model_copy(update={"name": f"gate-{mode}"})
    published = open_store(str(tmp_path / "store")).publish(model, "tiny")
    registry, typed = Registry(named), Record.model_validate(record)
    run = registry.start_run(f"gate {mode}")
    registry.log_record(run, typed)
    version = registry.register_version(run, typed, published)
    client = registry.client
    found = client.search_model_versions(f"name = 'gate-{mode}'")
    tags = client.get_run(run).data.tags
    assert (tags["gate"], tags["gate_failed"]) == (
        tag or "refused",
        '["perplexity: out of domain"]',
    )
    if mode == "on":
        assert (version, list(found)) == (None, [])
    else:
        assert [(str(v.version), v.tags["gate"]) for v in found] == [(version, tag)]


def test_a_failed_flow_leaves_no_running_run(settings):
    registry = Registry(settings)
    run, client = registry.start_run("fails"), registry.client
    registry.end_failed("fails")
    assert client.get_run(run).info.status == "FAILED"
    assert registry.start_run("fails") == run  # started again
    registry.end_failed("fails", "KILLED")
    assert client.get_run(run).info.status == "KILLED"
    registry.start_run("fails")
    registry.end_run(run)
    registry.end_failed("fails")
    registry.end_failed("never started")
    assert client.get_run(run).info.status == "FINISHED"


def test_bad_model_uris(settings):
    for uri in (
        "models:/tiny",
        "models:/tiny/latest",
        "tiny@challenger",
        "models:/a/b/3",
    ):
        with pytest.raises(UserError, match="models:/name@alias or models:/name/3"):
            Registry(settings).source_of(uri)
    for uri in ("models:/absent@challenger", "models:/absent/1"):
        with pytest.raises(UserError, match="absent"):
            Registry(settings).source_of(uri)


def test_unusable_tracking(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "text.db").write_text("this is not a database")
    for uri, said in [
        (f"http://me:{SECRET}@127.0.0.1:9", "cannot be reached"),
        (f"sqlite:///{tmp_path}/text.db", "not an SQLite database"),
        (f"sqlite:///{tmp_path}/text.db/mlflow.db", "a file stands"),
        (str(tmp_path / "mlruns"), "name sqlite:///FILE"),
        (f"ftp://me:{SECRET}@host", "name sqlite:///FILE"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            Registry(params.Registry(tracking_uri=uri))
        assert SECRET not in str(caught.value)


def test_check_refuses_a_local_store_behind_a_server(settings, monkeypatch):
    Registry(settings).check_store(params.Store(url="store"))
    monkeypatch.setattr("tasks.registry.client.connect", lambda _: None)
    served = Registry(params.Registry(tracking_uri="http://127.0.0.1:9"))
    served.check_store(params.Store(url="s3://bucket/x"))
    with pytest.raises(UserError, match="cannot read a local store"):
        served.check_store(params.Store(url="store"))
