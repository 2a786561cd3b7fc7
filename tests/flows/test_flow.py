"""The whole flow through the command line, on a random model of four layers: one run of it carries most checks."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from elder.files import file_digest
from elder.settings import validate
from tasks.audit.run import audit
from tasks.store.open import open_store
from tests.flows.running import (
    PATIENCE,
    command,
    finish,
    load_elsewhere,
    outcome_of,
    processes_of_session,
    record_of,
    start,
)
from tests.flows.waiting import wait_for, wait_for_none


@pytest.fixture(scope="module")
def first(project: Path) -> SimpleNamespace:
    return finish(project, start(project))


def test_stdout_is_one_json_object_with_the_promised_fields(
    first: SimpleNamespace,
) -> None:
    assert first.status == 0, first.stderr
    assert set(first.json) == {
        "run_id",
        "model_version",
        "gate",
        "report",
        "perplexity",
        "removed",
        "seconds",
    }
    assert first.json["model_version"] == "1"
    assert first.json["gate"]["passed"] is True
    assert set(first.json["perplexity"]) == {"dense", "pruned"}
    assert len(first.json["removed"]) == 1
    assert "Traceback" not in first.stderr


def test_the_run_folder_tells_the_whole_run(
    first: SimpleNamespace, project: Path
) -> None:
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
    md5 = {
        out["path"]: out["md5"]
        for s in yaml.safe_load(lock.read_text())["stages"].values()
        for out in s["outs"]
    }
    assert (
        lineage["data"]["calibration.safetensors"]
        == md5["build/data/calibration.safetensors"]
    )
    assert lineage["params"]["select"]["layers"] == 1
    assert lineage["params"]["evaluate"]["in_domain"] == "data/in_domain.txt"
    assert record["champion"] is None
    assert len({row["protocol_digest"] for row in record["rows"]}) == 1
    assert candidate["protocol"]["tasks"] == ["blimp_passive_1", "blimp_adjunct_island"]
    page = (first.folder / "report.html").read_text(encoding="utf-8")
    assert first.json["run_id"] in page
    assert "shortgpt" in page
    assert first.json["report"] == str(first.folder / "report.html")
    assert not list(first.folder.rglob("work"))


def test_all_copies_of_the_record_are_the_same_bytes(
    first: SimpleNamespace, project: Path
) -> None:
    own = (first.folder / "record.json").read_bytes()
    stored = Path(outcome_of(first)["artifact"]["url"]) / "record.json"
    (attached,) = (project / "mlartifacts").rglob("record.json")
    assert stored.read_bytes() == own
    assert attached.read_bytes() == own


def test_the_store_holds_a_verified_model_with_card_and_record(
    first: SimpleNamespace, project: Path
) -> None:
    artifact, store = outcome_of(first)["artifact"], open_store(str(project / "store"))
    assert store.verify(artifact["url"]) == []
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "elder.json",
    } <= set(artifact["files"])
    stored = Path(artifact["url"])
    card = (stored / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert first.json["run_id"] in card
    told = json.loads((stored / "elder.json").read_text())
    assert told["sha256"] == artifact["files"]["model.safetensors"]["sha256"]
    assert told["removed"] == first.json["removed"]


def test_the_registered_version_loads_in_plain_transformers(
    first: SimpleNamespace, project: Path
) -> None:
    # 4 layers less 1; "It was" is 6 bytes, and 3 new tokens
    assert load_elsewhere(project, "models:/tiny@challenger") == "3 9"


def test_mlflow_has_metrics_with_errors_and_a_closed_run(
    first: SimpleNamespace, project: Path
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    version = client.get_model_version_by_alias("tiny", "challenger")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["run_id"] == first.json["run_id"]
    dense = record_of(first)["rows"][0]["perplexity"]["in_domain"]
    assert run.data.metrics["dense/perplexity/in_domain"] == pytest.approx(
        dense["perplexity"]
    )
    assert run.data.metrics["dense/perplexity/in_domain_stderr"] == pytest.approx(
        dense["stderr"]
    )
    rules = {rule["rule"]: rule for rule in record_of(first)["gate"]["rules"]}
    assert {
        "worst task",
        "memory",
        "repetition",
        "plain transformers",
        "champion",
    } <= set(rules)
    assert run.data.metrics["gate/memory"] == pytest.approx(rules["memory"]["value"])
    assert run.data.metrics["gate_limit/repetition"] == 0.1
    passed = {f"gate_passed/{name}": 1.0 for name in rules}
    assert passed == {
        name: value
        for name, value in run.data.metrics.items()
        if name.startswith("gate_passed/")
    }
    assert {"record.json", "report.html"} <= {
        item.path for item in client.list_artifacts(version.run_id)
    }


def test_an_audit_of_the_version_finds_nothing(
    first: SimpleNamespace, project: Path
) -> None:
    done = command(project, "audit", "tiny/1", "--evaluate")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    # the copy of the project is no git repository
    assert [check["name"] for check in found["checks"] if check["ok"] is not True] == [
        "commit"
    ]
    record = json.loads(
        (Path(outcome_of(first)["artifact"]["url"]) / "record.json").read_text()
    )
    assert record["energy"]["kwh"] > 0
    assert record["lineage"]["installed"]["torch"]
    assert record["data"]["source"]["source"] == "data/calibration.txt"
    assert set(record["data"]["stages"]) == {"pin", "text", "blocks", "evaluation"}
    assert "artifact" not in record


def test_the_version_can_be_made_again(first: SimpleNamespace, project: Path) -> None:
    done = command(project, "reproduce", "tiny/1", "--output", "again")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["same_layers"], found["same_weights"], found["same_machine"]) == (
        True,
        True,
        True,
    )
    assert {domain: one["within"] for domain, one in found["metrics"].items()} == {
        "in_domain": True,
        "out_of_domain": True,
    }
    assert found["code"] == "the present code"
    assert (
        file_digest(project / "again" / "model.safetensors")
        == record_of(first)["sha256"]
    )


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
    yield (
        endpoint,
        keys | {"MLFLOW_S3_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"},
    )
    server.stop()


@pytest.fixture(scope="module")
def second(
    first: SimpleNamespace, project: Path, bucket: tuple[str, dict[str, str]]
) -> SimpleNamespace:
    """Run the same with its store on S3, kill it after the layers were removed, and start it again."""
    endpoint, env = bucket
    settings = [
        "store.url=s3://models/night",
        f"store.endpoint={endpoint}",
        "store.region=us-east-1",
    ]
    killed = start(project, *settings, env=env)

    def marks() -> list[Path]:
        return [
            path
            for path in (project / "runs").glob("*/work/remove.json")
            if first.folder not in path.parents
        ]

    try:
        folder = wait_for(marks, "removed layers", PATIENCE)[0].parents[1]
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        left = wait_for_none(lambda: processes_of_session(killed.pid), 20)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)
    run = finish(project, start(project, *settings, env=env))
    return SimpleNamespace(**vars(run), killed_in=folder, left=left)


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    first: SimpleNamespace, second: SimpleNamespace
) -> None:
    assert second.status == 0, second.stderr
    assert second.left == []  # no stage lives on beside the next attempt, and no server
    assert second.folder == second.killed_in
    assert f"going on with run {second.killed_in.name}" in second.stderr
    one, other = record_of(first), record_of(second)
    assert other["sha256"] == one["sha256"]
    assert other["removed"] == one["removed"]
    assert other["curve"] == one["curve"]


def test_dense_model_and_baselines_are_not_measured_again(
    first: SimpleNamespace, second: SimpleNamespace
) -> None:
    for name in ("dense.json", "baselines/shortgpt/evaluation.json"):
        assert (first.folder / name).is_file()
        assert not (second.folder / name).exists()
    dense, _, shortgpt = record_of(first)["rows"]
    assert record_of(second)["rows"][0] == dense
    assert record_of(second)["rows"][2] == shortgpt


def test_the_same_flow_publishes_to_s3(
    second: SimpleNamespace,
    project: Path,
    bucket: tuple[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, env = bucket
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    url = outcome_of(second)["artifact"]["url"]
    assert second.json["model_version"] == "2"
    assert url.startswith("s3://models/night/models/tiny/")
    assert open_store("s3://models/night", endpoint, "us-east-1").verify(url) == []
    assert load_elsewhere(project, "models:/tiny@challenger", env) == "3 9"
    tree = {
        "store": {"endpoint": endpoint},
        "registry": {"tracking_uri": f"sqlite:///{project}/mlflow.db"},
    }
    audited = audit(validate(tree), project, "tiny@challenger")
    assert audited.ok, audited.broken
    assert audited.version == "2"


@pytest.fixture(scope="module")
def refused(second: SimpleNamespace, project: Path) -> SimpleNamespace:
    """Run with a limit that no model of fewer layers holds, little else, and a champion that was given tasks."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{project}/mlflow.db").set_registered_model_alias(
        "tiny", "champion", "1"
    )
    little = ["evaluate.tasks=[]", "evaluate.baselines=[]", "recover.mode=none"]
    limits = [
        "gate.max_task_mean_loss=null",
        "gate.max_task_loss=null",
        "gate.max_perplexity_ratio_out_of_domain=0.5",
    ]
    return finish(project, start(project, *little, *limits))


def test_the_gate_refuses_says_why_and_registers_nothing(
    refused: SimpleNamespace, project: Path
) -> None:
    from mlflow import MlflowClient

    assert refused.status == 1
    assert refused.json["model_version"] is None
    rules = {rule["rule"]: rule for rule in refused.json["gate"]["rules"]}
    assert rules["perplexity out of domain"]["passed"] is False
    assert (
        "exceeds the most allowed, 0.5" in rules["perplexity out of domain"]["reason"]
    )
    assert "exceeds the most allowed, 0.5" in (
        refused.folder / "report.html"
    ).read_text(encoding="utf-8")
    assert rules["champion"]["passed"] is False
    assert (
        "the champion, version 1: it was measured under another protocol"
        in rules["champion"]["reason"]
    )
    assert "(candidate: [])" in rules["champion"]["reason"]
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    assert {
        str(version.version)
        for version in client.search_model_versions("name = 'tiny'")
    } == {"1", "2"}
    assert str(client.get_model_version_by_alias("tiny", "challenger").version) == "2"
    runs = client.search_runs([client.get_experiment_by_name("elder").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 3
