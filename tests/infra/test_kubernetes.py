"""The work pool's base job template: that Prefect accepts it, and what job comes out of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values
from prefect.workers.base import BaseJobConfiguration

TEMPLATE = Path(__file__).parents[2] / "infra" / "kubernetes" / "base-job-template.json"


@pytest.fixture
def template() -> dict[str, Any]:
    return json.loads(TEMPLATE.read_text())


def job(template: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Return the manifest that a worker makes of the template, as Prefect does it."""
    defaults = BaseJobConfiguration._get_base_config_defaults(
        template["variables"]["properties"]
    )
    return apply_values(template["job_configuration"], defaults | values)[
        "job_manifest"
    ]


def test_the_server_accepts_it(template: dict[str, Any]) -> None:
    pool = WorkPoolCreate(
        name="elder-gpu", type="kubernetes", base_job_template=template
    )
    assert pool.base_job_template == template
    del template["variables"]["properties"]["gpus"]
    with pytest.raises(ValueError, match="undeclared variable.*gpus"):
        WorkPoolCreate(name="elder-gpu", type="kubernetes", base_job_template=template)


def test_every_variable_is_used(template: dict[str, Any]) -> None:
    used = json.dumps(template["job_configuration"])
    assert [
        name
        for name in template["variables"]["properties"]
        if f"{{{{ {name} }}}}" not in used
    ] == []


def test_a_job_asks_for_its_gpus(template: dict[str, Any]) -> None:
    made = job(
        template, image="registry.example.org/elder@sha256:0", gpus=2, name="nightly"
    )
    pod = made["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert made["metadata"]["generateName"] == "nightly-"
    assert container["image"] == "registry.example.org/elder@sha256:0"
    assert container["resources"]["requests"] == {
        "cpu": "4",
        "memory": "32Gi",
        "nvidia.com/gpu": 2,
    }
    assert container["resources"]["limits"] == {
        "memory": "32Gi",
        "nvidia.com/gpu": 2,
    }  # they have to be equal for GPUs
    assert container["envFrom"] == [{"secretRef": {"name": "elder-services"}}]
    # What Prefect's Kubernetes worker insists on.
    assert (
        pod["parallelism"],
        pod["completions"],
        pod["restartPolicy"],
        container["name"],
    ) == (
        1,
        1,
        "Never",
        "prefect-job",
    )
    # the committed keys/trusted.yaml is the image's: a job cannot say whom others believe
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert "/keys" in places
    assert "/project/keys" not in places
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_no_secret_is_a_variable(template: dict[str, Any]) -> None:
    """Prefect stores variables and shows them in its UI; secrets come from a Kubernetes secret."""
    names = " ".join(template["variables"]["properties"]).lower()
    assert not any(word in names for word in ("password", "token", "access_key"))
