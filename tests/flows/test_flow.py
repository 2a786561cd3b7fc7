"""The whole flow through the command line, on a random model of four layers: one run of it carries most checks."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from elder.data import file_digest
from tasks.store import open_store

COMMAND = [sys.executable, "-c", "from flows.cli import main; main()"]
PATIENCE = 600  # seconds that a run may take on a machine with much else to do
LOAD = """
import sys
import mlflow
from transformers import AutoModelForCausalLM, AutoTokenizer
mlflow.set_tracking_uri("sqlite:///mlflow.db")
folder = mlflow.artifacts.download_artifacts(sys.argv[1])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
out = model.generate(**tokenizer("It was", return_tensors="pt"), max_new_tokens=3, min_new_tokens=3, do_sample=False)
print(model.config.num_hidden_layers, out.shape[1])
"""


def start(project: Path, *overrides: str, env: dict[str, str] | None = None) -> subprocess.Popen:
    """Start ``elder run --json``; output goes to files, since a killed run's server would hold a pipe open."""
    flags = [flag for override in overrides for flag in ("--set", override)]
    with (project / "stdout").open("w") as out, (project / "stderr").open("w") as err:
        command = [*COMMAND, "run", "--json", *flags]
        return subprocess.Popen(
            command, cwd=project, stdout=out, stderr=err, env=os.environ | (env or {}), start_new_session=True
        )


def finish(project: Path, process: subprocess.Popen) -> SimpleNamespace:
    """Wait for a run; returns status, the JSON on stdout, stderr and, where there is one, the run's folder."""
    status = process.wait(timeout=PATIENCE)
    out, err = ((project / name).read_text() for name in ("stdout", "stderr"))
    assert out.count("\n") == 1, err
    found = json.loads(out)
    return SimpleNamespace(status=status, json=found, stderr=err, folder=project / "runs" / found["run_id"])


@pytest.fixture(scope="module")
def first(project: Path) -> SimpleNamespace:
    return finish(project, start(project))


def record_of(run: SimpleNamespace) -> dict[str, Any]:
    return json.loads((run.folder / "record.json").read_text())


def load_elsewhere(project: Path, uri: str, env: dict[str, str] | None = None) -> str:
    """Load a registered model with transformers alone, in a process that cannot see this project's copy."""
    command = [sys.executable, "-P", "-c", LOAD, uri]
    done = subprocess.run(command, cwd=project, env=os.environ | (env or {}), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_stdout_is_one_json_object_with_the_promised_fields(first: SimpleNamespace) -> None:
    assert first.status == 0, first.stderr
    assert set(first.json) == {"run_id", "model_version", "gate", "report", "perplexity", "removed", "seconds"}
    assert first.json["model_version"] == "1"
    assert first.json["gate"]["passed"] is True
    assert set(first.json["perplexity"]) == {"dense", "pruned"}
    assert len(first.json["removed"]) == 1
    assert "Traceback" not in first.stderr


def test_the_run_folder_tells_the_whole_run(first: SimpleNamespace, project: Path) -> None:
    record = record_of(first)
    assert [(row["name"], row["kind"]) for row in record["rows"]] == [
        ("dense", "dense"),
        ("default", "candidate"),
        ("shortgpt", "baseline"),
    ]
    dense, candidate = record["rows"][:2]
    assert dense["perplexity"]["out_of_domain"]["tokens"] == 1024
    assert set(dense["tasks"]) == {"blimp_passive_1", "blimp_adjunct_island"}
    # 8 blocks of 32, one epoch of training and what the search took
    assert candidate["tokens_seen"] >= 8 * 32
    assert candidate["parameters"] < dense["parameters"]
    assert sorted(record["kept"] + record["removed"]) == [0, 1, 2, 3]
    assert record["model"]["name"] == "models/tiny"
    lineage = record["lineage"]
    lock = project / "dvc.lock"
    assert lineage["dvc_lock_sha256"] == file_digest(lock)
    md5 = {out["path"]: out["md5"] for s in yaml.safe_load(lock.read_text())["stages"].values() for out in s["outs"]}
    assert lineage["data"]["calibration.safetensors"] == md5["build/data/calibration.safetensors"]
    assert lineage["params"]["select"]["layers"] == 1
    assert lineage["params"]["evaluate"]["in_domain"] == "data/in_domain.txt"
    page = (first.folder / "report.html").read_text(encoding="utf-8")
    assert first.json["run_id"] in page
    assert "shortgpt" in page
    assert first.json["report"] == str(first.folder / "report.html")


def test_the_store_holds_a_verified_model_with_card_and_record(first: SimpleNamespace, project: Path) -> None:
    artifact, store = record_of(first)["artifact"], open_store(str(project / "store"))
    assert store.verify(artifact["url"]) == []
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "elder.json"} <= set(artifact["files"])
    stored = Path(artifact["url"])
    card = (stored / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert first.json["run_id"] in card
    told = json.loads((stored / "elder.json").read_text())
    assert told["sha256"] == artifact["files"]["model.safetensors"]["sha256"]
    assert told["removed"] == first.json["removed"]


def test_the_registered_version_loads_in_plain_transformers(first: SimpleNamespace, project: Path) -> None:
    # 4 layers less 1; "It was" is 6 bytes, and 3 new tokens
    assert load_elsewhere(project, "models:/tiny@challenger") == "3 9"


def test_mlflow_has_metrics_with_errors_and_a_closed_run(first: SimpleNamespace, project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    version = client.get_model_version_by_alias("tiny", "challenger")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["run_id"] == first.json["run_id"]
    dense = record_of(first)["rows"][0]["perplexity"]["in_domain"]
    assert run.data.metrics["dense/perplexity/in_domain"] == pytest.approx(dense["perplexity"])
    assert run.data.metrics["dense/perplexity/in_domain_stderr"] == pytest.approx(dense["stderr"])
    assert {"record.json", "report.html"} <= {item.path for item in client.list_artifacts(version.run_id)}


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, dict[str, str]]]:
    """Serve S3 over HTTP; yields the endpoint and the environment that reaches it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    login = {name.lower(): value for name, value in keys.items()}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **login)
    client.create_bucket(Bucket="models")
    yield endpoint, keys | {"MLFLOW_S3_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    server.stop()


def stages_of(run_folder: Path) -> list[str]:
    """Return the command lines of living stages of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if " -m elder stage " in line and str(run_folder) in line:
            found.append(line)
    return found


def wait_for(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def second(first: SimpleNamespace, project: Path, bucket: tuple[str, dict[str, str]]) -> SimpleNamespace:
    """Run the same with its store on S3, kill it after the layers were removed, and start it again."""
    endpoint, env = bucket
    settings = ["store.url=s3://models/night", f"store.endpoint={endpoint}", "store.region=us-east-1"]
    settings += ["evaluate.baselines=[]"]
    killed = start(project, *settings, env=env)

    def marks() -> list[Path]:
        return [path for path in (project / "runs").glob("*/work/remove.json") if first.folder not in path.parents]

    try:
        assert wait_for(marks, PATIENCE), (project / "stderr").read_text()
        folder = marks()[0].parents[1]
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        alone = wait_for(lambda: not stages_of(folder), 20)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)  # its Prefect server outlives it
    run = finish(project, start(project, *settings, env=env))
    return SimpleNamespace(**vars(run), killed_in=folder, alone=alone)


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    first: SimpleNamespace, second: SimpleNamespace
) -> None:
    assert second.status == 0, second.stderr
    assert second.alone  # no stage lives on beside the next attempt
    assert second.folder == second.killed_in
    assert f"going on with run {second.killed_in.name}" in second.stderr
    one, other = record_of(first), record_of(second)
    assert other["sha256"] == one["sha256"]
    assert other["removed"] == one["removed"]
    assert other["curve"] == one["curve"]


def test_the_dense_model_is_not_evaluated_again(first: SimpleNamespace, second: SimpleNamespace) -> None:
    assert (first.folder / "dense.json").is_file()
    assert not (second.folder / "dense.json").exists()
    assert record_of(second)["rows"][0] == record_of(first)["rows"][0]


def test_the_same_flow_publishes_to_s3(
    second: SimpleNamespace, project: Path, bucket: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, env = bucket
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    record = record_of(second)
    assert second.json["model_version"] == "2"
    assert record["artifact"]["url"].startswith("s3://models/night/models/tiny/")
    assert open_store("s3://models/night", endpoint, "us-east-1").verify(record["artifact"]["url"]) == []
    assert load_elsewhere(project, "models:/tiny@challenger", env) == "3 9"


@pytest.fixture(scope="module")
def refused(second: SimpleNamespace, project: Path) -> SimpleNamespace:
    """Run with a limit that no model of fewer layers holds, and little else."""
    little = ["evaluate.tasks=[]", "evaluate.baselines=[]", "gate.max_task_mean_loss=null", "recover.mode=none"]
    limits = ["gate.max_perplexity_ratio_out_of_domain=0.5"]
    return finish(project, start(project, *little, *limits))


def test_the_gate_refuses_says_why_and_registers_nothing(refused: SimpleNamespace, project: Path) -> None:
    from mlflow import MlflowClient

    assert refused.status == 1
    assert refused.json["model_version"] is None
    rules = {rule["rule"]: rule for rule in refused.json["gate"]["rules"]}
    assert rules["perplexity out of domain"]["passed"] is False
    assert "exceeds the most allowed, 0.5" in rules["perplexity out of domain"]["reason"]
    assert "exceeds the most allowed, 0.5" in (refused.folder / "report.html").read_text(encoding="utf-8")
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    assert {str(version.version) for version in client.search_model_versions("name = 'tiny'")} == {"1", "2"}
    assert str(client.get_model_version_by_alias("tiny", "challenger").version) == "2"
    runs = client.search_runs([client.get_experiment_by_name("elder").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 3
