"""Running ``elder`` in processes of their own, as people and schedulers do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

from tests.flows.waiting import free_port, wait_for

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


def start(
    project: Path, *overrides: str, env: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Start ``elder run --json``; its output goes to files."""
    flags = [flag for override in overrides for flag in ("--set", override)]
    with (project / "stdout").open("w") as out, (project / "stderr").open("w") as err:
        return subprocess.Popen(
            [*COMMAND, "run", "--json", *flags],
            cwd=project,
            stdout=out,
            stderr=err,
            env=os.environ | dict(env or {}),
            start_new_session=True,
        )


def finish(project: Path, process: subprocess.Popen) -> SimpleNamespace:
    """Wait for a run; returns status, the JSON on stdout, stderr and the run's folder."""
    status = process.wait(timeout=PATIENCE)
    out, err = ((project / name).read_text() for name in ("stdout", "stderr"))
    assert out.count("\n") == 1, err
    answer = json.loads(out)
    folder = project / "runs" / answer["run_id"]
    return SimpleNamespace(status=status, json=answer, stderr=err, folder=folder)


def record_of(run: SimpleNamespace) -> dict[str, Any]:
    """Return the record of a run."""
    return json.loads((run.folder / "record.json").read_text())


def outcome_of(run: SimpleNamespace) -> dict[str, Any]:
    """Return what became of a run: artifact, version and report."""
    return json.loads((run.folder / "run.json").read_text())


def command(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run another command of ``elder`` in the project."""
    return subprocess.run(
        [*COMMAND, *arguments, "--json"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


def load_elsewhere(
    project: Path, uri: str, env: Mapping[str, str] | None = None
) -> str:
    """Load a registered model with transformers alone, in a process that cannot see this project's copy."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, uri],
        cwd=project,
        env=os.environ | dict(env or {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def processes_of_session(session: int) -> list[str]:
    """Return the command lines of the living processes of a session."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
            line = path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(number) == session and state != "Z":
            lines.append(line)
    return lines


@contextmanager
def prefect_server(project: Path, log: Path) -> Iterator[str]:
    """Run a Prefect server; gives the address of its API."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            cwd=project,
            env=os.environ | {"PREFECT_API_URL": api},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def health() -> bool:
        try:
            return urlopen(f"{api}/health", timeout=5).status == 200
        except OSError:
            return False

    try:
        wait_for(health, "Prefect server", PATIENCE)
        yield api
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
