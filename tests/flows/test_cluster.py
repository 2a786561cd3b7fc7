"""A sweep and a comparison on a Ray cluster of two machines, one of which dies in the middle of its cell."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from elder.errors import UserError
from elder.settings import validate
from flows import cluster as module
from flows.cluster import _needs, _refuse_too_small, refuse_cluster
from tests.flows.running import COMMAND, PATIENCE, prefect_server
from tests.flows.waiting import wait_for

pytest.importorskip("ray")
SHORT = {
    "recover.mode": "none",
    "compensate.method": "none",
    "evaluate.tasks": [],
    "evaluate.baselines": [],
    "energy.measure": False,
    "gate.mode": "off",
}
GRID = {"method": ["default"], "select.layers": [1, 2]}


@pytest.fixture(scope="module")
def api(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the Prefect server that the machines report to."""
    with prefect_server(project, tmp_path_factory.mktemp("server") / "log") as found:
        yield found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Start a Ray cluster: a head that runs nothing, and two machines of one core."""
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    try:
        made.machines = [made.add_node(num_cpus=1) for _ in range(2)]
        yield made
    finally:
        made.shutdown()


def start(
    project: Path, cluster: Any, api: str, *arguments: str
) -> subprocess.Popen[bytes]:
    """Start a command of ``elder`` on the cluster; its output goes to files."""
    flags = [f"--set={key}={json.dumps(value)}" for key, value in SHORT.items()]
    flags.append(f"--set=launch.ray={cluster.address}")
    with (project / "stdout").open("w") as out, (project / "stderr").open("w") as err:
        return subprocess.Popen(
            [*COMMAND, *arguments, "--json", *flags],
            cwd=project,
            stdout=out,
            stderr=err,
            env=os.environ | {"PREFECT_API_URL": api},
        )


def test_a_sweep_survives_a_machine_that_dies(
    project: Path, cluster: Any, api: str
) -> None:
    (project / "grid.yaml").write_text(yaml.safe_dump(GRID))
    process = start(project, cluster, api, "sweep", "grid.yaml")
    runs = project / "runs"

    def at_work() -> bool:
        return len(list(runs.glob("*/work/learn.json"))) == 2

    wait_for(at_work, "two cells at once", PATIENCE)
    begun = {path.parent.name for path in runs.glob("*/start.json")}
    cluster.remove_node(cluster.machines.pop(), allow_graceful=False)
    status = process.wait(timeout=PATIENCE)
    said = (project / "stderr").read_text()
    assert status == 0, said
    assert "Traceback" not in said
    assert "going on with run" in said
    rows = json.loads((project / "stdout").read_text())["runs"]
    assert [row["cell"]["select.layers"] for row in rows] == [1, 2]
    assert [row["error"] for row in rows] == [None, None]
    # the cell whose machine died went on in its own folder, and each came to the registry once
    assert {row["run_id"] for row in rows} == begun
    assert sorted(row["version"] for row in rows) == ["1", "2"]


@pytest.mark.slow
def test_a_comparison_measures_its_rows_on_the_cluster(
    project: Path, cluster: Any, api: str
) -> None:
    rows = ("compare", "--methods", "last,sleb[select.protect=[0,1,2,3]]", "--layers=1")
    process = start(project, cluster, api, *rows)
    status = process.wait(timeout=PATIENCE)
    said = (project / "stderr").read_text()
    assert status == 2, said
    assert "protect fewer" in said.splitlines()[-1]
    found = json.loads((project / "stdout").read_text())
    assert [row["name"] for row in found["rows"]] == ["dense", "last"]


def test_what_no_machine_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 4.0, "GPU": 2.0}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: machines)
    where = validate({"launch": {"ray": "auto"}}).launch
    for fits in ({"num_cpus": 4, "num_gpus": 0}, {"num_cpus": 1, "num_gpus": 2}):
        _refuse_too_small(where, fits)
    with pytest.raises(UserError, match="has 2 cores and 1 GPUs: set launch.cpus or"):
        _refuse_too_small(where, {"num_cpus": 2, "num_gpus": 1})


@pytest.mark.parametrize(
    ("launch", "device", "gpus"),
    [
        ({}, "auto", 1),
        ({}, "cpu", 0),
        ({"processes": 4}, "auto", 4),
        ({"processes": 4, "gpus": 0.5}, "auto", 0.5),
    ],
)
def test_a_call_gets_a_gpu_for_each_process(
    launch: dict[str, Any], device: str, gpus: float
) -> None:
    settings = validate({"launch": launch, "model": {"device": device}})
    assert _needs(settings, {"GPU": 8.0}) == {"num_cpus": 1, "num_gpus": gpus}
    assert _needs(settings, {})["num_gpus"] == (0 if "gpus" not in launch else gpus)


def test_a_cluster_needs_a_server_and_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = validate({"launch": {"ray": "auto"}})
    with pytest.raises(UserError, match=r"launch.ray is 'auto', and PREFECT_API_URL"):
        refuse_cluster(settings)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'elder\[ray\]'"):
        refuse_cluster(settings)
