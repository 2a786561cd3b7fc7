"""A whole run with a secret in every place that takes one: none of them is written, printed, or shown of a process."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from tests.flows.running import COMMAND, PATIENCE
from tests.flows.waiting import free_port, wait_for

pytestmark = pytest.mark.slow
MARK = "Zq7x"  # in every secret
PLACE = "ELDER_OF_THIS_TEST"  # in the environment of every process that the run starts
KEYS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{MARK}ACCESS",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}/aws+secret",
    "AWS_SESSION_TOKEN": f"{MARK}session//==",
}
QUICK = {
    "select": {"method": "last", "layers": 1},
    "regularise": {"epochs": 0},
    "recover": {"mode": "none"},
    "evaluate": {"baselines": [], "tasks": ["blimp_passive_1"]},
    "gate": {"mode": "dry-run"},
}
SHAPES = "".join(f"{MARK}{one}" for one in ("/", "#", "?", "'", ":", "%40", " "))


class Receiver(BaseHTTPRequestHandler):
    """Takes what a webhook is told."""

    told: list[tuple[str, bytes]] = []

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.told.append((self.path, self.rfile.read(length)))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def answers(url: str) -> bool:
    try:
        return urlopen(url, timeout=5).status == 200
    except (URLError, OSError):
        return False


@pytest.fixture(scope="module")
def services(project: Path) -> Iterator[dict[str, str]]:
    """Serve S3, MLflow and a webhook; yields the environment that reaches them, and a parameter file does the rest."""
    bucket = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    bucket.start()
    endpoint = "http://{}:{}".format(*bucket.get_host_and_port())
    s3(endpoint).create_bucket(Bucket="models")
    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    port = free_port()
    place = project / "mlflow"
    place.mkdir()
    address = f"127.0.0.1:{port}"
    with (place / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
            + ["--host", "127.0.0.1", "--port", str(port)]
            + ["--backend-store-uri", "sqlite:///server.db"]
            + ["--artifacts-destination", str(place / "artifacts")],
            cwd=place,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree["registry"]["tracking_uri"] = f"postgresql://me:{SHAPES}@db/x"
    tree["store"] = {"url": "s3://models/night", "endpoint": endpoint}
    hook = f"http://127.0.0.1:{receiver.server_port}/hooks/{MARK}path?sig={MARK}sig"
    tree["notify"]["webhook"] = hook
    for section, values in QUICK.items():
        tree[section] |= values
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    try:
        wait_for(lambda: answers(f"http://{address}/health"), "MLflow", PATIENCE)
        yield KEYS | {
            "ELDER_SET": f"registry.tracking_uri=http://me:{MARK}%2F%23pw@{address} store.region=us-east-1",
            "PREFECT_HOME": str(project / "prefect"),
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_API_AUTH_STRING": f"me:{MARK}auth",
            "PGPASSWORD": f"{MARK}pgpassword",
            PLACE: "1",
            "HF_TOKEN": f"hf_{MARK}{'A' * 30}",
            "SIGSTORE_ID_TOKEN": f"eyJ{MARK}.eyJ{MARK}.sig",
            "ELDER_WEBHOOK": f"https://hooks.slack.com/services/T0/{MARK}",
        }
    finally:
        os.killpg(server.pid, 9)
        receiver.shutdown()
        bucket.stop()


def s3(endpoint: str):
    login = {name.lower(): value for name, value in KEYS.items()}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **login)


class Watch(threading.Thread):
    """Looks at the command lines of all processes, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    # of this test's processes alone: others may look for the same
                    if PLACE.encode() in path.with_name("environ").read_bytes():
                        self.seen.add(path.read_bytes())
                except OSError:  # it has ended
                    continue
            time.sleep(0.05)


def elder(
    project: Path, env: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=project,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def ran(project: Path, services: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the flow, and look meanwhile at what a process list shows."""
    watch = Watch()
    watch.start()
    done = elder(project, services, "run")
    watch.over.set()
    watch.join()
    assert any(b"stage" in line for line in watch.seen)
    assert [line for line in watch.seen if MARK.encode() in line] == []
    return done


def test_a_run_writes_prints_and_shows_no_secret(
    ran: subprocess.CompletedProcess[str], project: Path, services: dict[str, str]
) -> None:
    assert ran.returncode == 0, ran.stderr
    assert MARK not in ran.stdout + ran.stderr
    assert [path for path, _ in Receiver.told] == [f"/hooks/{MARK}path?sig={MARK}sig"]
    assert MARK.encode() not in Receiver.told[0][1]
    files = [path for path in project.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {
        "record.json",
        "run.json",
        "report.html",
        "server.db",
        "prefect.db",
    } <= names
    holding = [path for path in files if MARK.encode() in path.read_bytes()]
    assert holding == [project / "params.yaml"]  # where it was planted
    assert [str(path) for path in project.rglob(f"*{MARK}*")] == []


def test_the_store_holds_no_secret(
    ran: subprocess.CompletedProcess[str], project: Path
) -> None:
    tree = yaml.safe_load((project / "params.yaml").read_text())
    client = s3(tree["store"]["endpoint"])
    stored = client.list_objects_v2(Bucket="models")["Contents"]
    assert len(stored) > 5
    for one in stored:
        body = client.get_object(Bucket="models", Key=one["Key"])["Body"].read()
        assert MARK.encode() not in body + one["Key"].encode()


@pytest.mark.parametrize(
    ("arguments", "changed", "statuses"),
    [
        (["doctor"], {}, (0, 1)),
        (["audit", "tiny/1"], {}, (0, 1)),
        (["history", "tiny"], {}, (0,)),
        (["history", "tiny"], {"ELDER_SET": ""}, (2,)),
        (["doctor"], {"PREFECT_API_URL": f"http://me:{MARK}@127.0.0.1:9/api"}, (1,)),
        (["doctor"], {"PREFECT_API_URL": f"http://me:{MARK}/#@127.0.0.1/api"}, (1,)),
        (["doctor"], {"ELDER_SET": f"registry.tracking_uri=a {MARK}"}, (2,)),
        (["run", "--set", f"registry.tracking_uri=mysql://me:{MARK}@h/x"], {}, (2,)),
        (["run", "--set", f"registry=mysql://me:{MARK}@h/x"], {}, (2,)),
        (["run", "--set", f"store.endpoint=http://me:{MARK}@h"], {}, (2,)),
    ],
)  # fmt: skip
def test_no_command_repeats_a_secret(
    ran: subprocess.CompletedProcess[str],
    project: Path,
    services: dict[str, str],
    arguments: list[str],
    changed: dict[str, str],
    statuses: tuple[int, ...],
) -> None:
    done = elder(project, services | changed, *arguments)
    assert done.returncode in statuses, done.stderr
    assert MARK not in done.stdout + done.stderr
