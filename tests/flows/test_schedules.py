"""The deployments of prefect.yaml on a real Prefect server: deployed, run by a worker, served, refused, told."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from tests.flows.waiting import free_port, wait_for

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds that anything here may take on a machine with much else to do
LITTLE = [
    "evaluate.tasks=[]",
    "evaluate.baselines=[]",
    "gate.max_task_mean_loss=null",
    "gate.max_task_loss=null",
]
LITTLE += ["recover.mode=none", "energy.measure=false", "signing.private_key=null"]
LIMIT = "gate.max_perplexity_ratio_out_of_domain=0.5"


def stop(process: subprocess.Popen) -> int:
    """End a process as Ctrl-C does; returns its status."""
    process.send_signal(signal.SIGINT)
    try:
        return process.wait(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def place(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """Start a Prefect server, and the receiver that docs/nightly.md shows, for the copy of the project."""
    blocks = (ROOT / "docs" / "nightly.md").read_text(encoding="utf-8").split("```")
    script = next(
        block for block in blocks if block.startswith("python\n")
    ).removeprefix("python\n")
    logs, ports = tmp_path_factory.mktemp("logs"), (free_port(), free_port())
    (logs / "receiver.py").write_text(script)
    env = os.environ | {
        "PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "ELDER_WEBHOOK": f"http://127.0.0.1:{ports[1]}/hook",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    started: list[subprocess.Popen] = []

    def start(name: str, *command: str) -> subprocess.Popen:
        with (logs / name).open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=project,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    def health() -> bool:
        try:
            return urlopen(f"{env['PREFECT_API_URL']}/health", timeout=5).status == 200
        except OSError:
            return False

    start(
        "server",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(ports[0]),
    )
    start("receiver", sys.executable, str(logs / "receiver.py"), str(ports[1]))
    try:
        wait_for(health, "Prefect server", PATIENCE)
        yield SimpleNamespace(project=project, env=env, logs=logs, start=start)
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def prefect(place: SimpleNamespace, *arguments: str) -> str:
    """Run a command of docs/nightly.md; returns what it printed."""
    done = subprocess.run(
        ["prefect", *arguments],
        cwd=place.project,
        env=place.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def told(place: SimpleNamespace) -> list[dict[str, Any]]:
    """Return what the receiver printed."""
    return [
        json.loads(line) for line in (place.logs / "receiver").read_text().splitlines()
    ]


def flow_runs(place: SimpleNamespace, deployment: str) -> list[Any]:
    """Return the runs of a deployment, oldest first."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
    from prefect.client.schemas.sorting import FlowRunSort
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: place.env["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):
        named = DeploymentFilter(name=DeploymentFilterName(any_=[deployment]))
        return client.read_flow_runs(
            deployment_filter=named, sort=FlowRunSort.START_TIME_ASC
        )


@pytest.fixture(scope="module")
def deployed(place: SimpleNamespace) -> SimpleNamespace:
    shutil.copy(ROOT / "prefect.yaml", place.project)
    prefect(place, "work-pool", "create", "elder", "--type", "process")
    prefect(place, "--no-prompt", "deploy", "--all")
    return place


def test_all_deployments_are_there_with_schedule_and_limit(
    deployed: SimpleNamespace,
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = deployed.env["PREFECT_API_URL"]
    with (
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        found = {one.name: one for one in client.read_deployments()}
    assert set(found) == {"nightly", "weekly-sweep", "promotion"}
    for name, cron in (
        ("nightly", "0 2 * * *"),
        ("weekly-sweep", "0 4 * * 0"),
        ("promotion", None),
    ):
        assert [one.schedule.cron for one in found[name].schedules] == (
            [cron] if cron else []
        )
        limit, options = (
            found[name].global_concurrency_limit,
            found[name].concurrency_options,
        )
        # an unanswered form must not hold up the next promotion
        expected = (1, "ENQUEUE") if cron else (None, None)
        assert (
            limit and limit.limit,
            options and options.collision_strategy,
        ) == expected
        assert found[name].work_pool_name == "elder"
        assert found[name].pull_steps[0][
            "prefect.deployments.steps.set_working_directory"
        ] == {"directory": str(deployed.project)}


@pytest.fixture(scope="module")
def refused(deployed: SimpleNamespace) -> SimpleNamespace:
    """Let a worker do the nightly run, with a limit that no model of fewer layers holds."""
    values = {"overrides": [*LITTLE, LIMIT]}
    prefect(
        deployed, "deployment", "run", "nightly/nightly", "--params", json.dumps(values)
    )
    worker = deployed.start(
        "worker", "prefect", "worker", "start", "--pool", "elder", "--run-once"
    )
    assert worker.wait(timeout=PATIENCE) == 0
    return deployed


def test_a_worker_runs_it_and_a_refusal_is_its_answer(refused: SimpleNamespace) -> None:
    (run,) = [run for run in flow_runs(refused, "nightly") if run.start_time]
    assert (run.state.type, run.state.name) == ("COMPLETED", "Refused"), (
        refused.logs / "worker"
    ).read_text()
    assert "exceeds the most allowed, 0.5" in run.state.message
    (refusal,) = told(refused)
    assert (refusal["event"], refusal["name"], refusal["version"]) == (
        "refusal",
        "tiny",
        None,
    )
    assert "exceeds the most allowed, 0.5" in refusal["gate"]["reasons"][0]
    assert Path(refusal["report"]).is_file()


def test_serving_leaves_the_deployments_of_workers_alone(
    refused: SimpleNamespace,
) -> None:
    serve = refused.start(
        "serve", sys.executable, "-c", "from flows.cli import main; main()", "serve"
    )
    assert serve.wait(timeout=PATIENCE) == 2
    said = (refused.logs / "serve").read_text()
    assert "nightly/nightly at http://127.0.0.1:" in said
    assert "remove what was deployed: prefect deployment delete nightly/nightly" in said
    # its deployment, and its runs, are still there
    assert len(flow_runs(refused, "nightly")) >= 1


@pytest.fixture(scope="module")
def served(refused: SimpleNamespace) -> SimpleNamespace:
    """Serve the sweep each minute. Its one cell is the nightly run, so it is done already."""
    for name in ("nightly/nightly", "sweep/weekly-sweep", "promote/promotion"):
        prefect(refused, "--no-prompt", "deployment", "delete", name)
    key, limit = LIMIT.split("=")
    (refused.project / "grid.yaml").write_text(f"{key}: [{limit}]\n")
    tree = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    sweep = next(
        entry for entry in tree["deployments"] if entry["name"] == "weekly-sweep"
    )
    sweep["schedules"] = [
        {"cron": "* * * * *", "timezone": "Etc/UTC", "slug": "weekly"}
    ]
    sweep["parameters"] |= {"file": "grid.yaml", "overrides": LITTLE, "again": False}
    (refused.project / "prefect.yaml").write_text(yaml.safe_dump(tree))
    serve = refused.start(
        "serve", sys.executable, "-c", "from flows.cli import main; main()", "serve"
    )
    return SimpleNamespace(**vars(refused), serve=serve)


def test_a_served_schedule_fires_by_itself_and_done_cells_are_not_run_again(
    served: SimpleNamespace,
) -> None:
    def finished() -> list[Any]:
        assert served.serve.poll() is None, (served.logs / "serve").read_text()
        return [
            run for run in flow_runs(served, "weekly-sweep") if run.state.is_final()
        ]

    first = wait_for(finished, "finished sweep", PATIENCE)[0]
    assert first.auto_scheduled
    assert first.state.is_completed(), (served.logs / "serve").read_text()
    assert first.state.message == "0 of 1 cells passed the gate"
    assert len(told(served)) == 1  # the nightly run


def test_ctrl_c_ends_serving_and_pauses_the_schedules(served: SimpleNamespace) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    assert stop(served.serve) == 0
    log = (served.logs / "serve").read_text()
    assert "Traceback" not in log
    url = served.env["PREFECT_API_URL"]
    with (
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        assert client.read_deployment_by_name("sweep/weekly-sweep").paused


def test_serving_needs_a_server(project: Path) -> None:
    command = [sys.executable, "-c", "from flows.cli import main; main()", "serve"]
    done = subprocess.run(
        command, cwd=project, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no Prefect server to keep the schedules" in done.stderr
