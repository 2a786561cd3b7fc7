"""The compose file: valid by the specification, images pinned, no secret in it, nothing open to the network."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

INFRA = Path(__file__).parents[2] / "infra"
FILES = ("compose.yaml", "compose.gpu.yaml")
ENDS = {"buckets", "accounts", "worker-key", "promoter-key"}
PEOPLE = {"promoter", "auditor"}  # run when somebody asks for them
VARIABLE = r"\$\{(\w+)(:\?[^}]*)?\}"


def read(name: str) -> str:
    return (INFRA / name).read_text(encoding="utf-8")


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(read("compose.yaml"))["services"]


def parse(text: str) -> PyCompose:
    """Parse strictly, with anchors and variables resolved as docker compose does it before."""
    resolved = re.sub(
        VARIABLE, lambda found: "5433" if found[1].endswith("PORT") else "x", text
    )
    # this parser takes a tag or a digest, docker both
    plain = re.sub(r"@sha256:[0-9a-f]{64}", "", resolved)
    return PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(plain)))


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid(name: str) -> None:
    assert "worker" in parse(read(name)).service_names()


def test_the_parser_would_find_a_mistake() -> None:
    with pytest.raises(ValueError, match="depend_on"):
        parse(read("compose.yaml").replace("depends_on", "depend_on", 1))


def test_images_are_pinned(services: dict[str, dict[str, Any]]) -> None:
    images = {
        name: service["image"]
        for name, service in services.items()
        if "build" not in service
    }
    assert set(images) == {"postgres", "s3"}
    base = re.search(r"^FROM (\S+)$", read("Dockerfile"), re.MULTILINE)
    for image in (*images.values(), base[1]):
        assert re.fullmatch(r"[\w/.-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)


def test_the_gpu_worker_has_an_image_of_its_own(
    services: dict[str, dict[str, Any]],
) -> None:
    """Built with other arguments under the same name, it would depend on which of the services was built last."""
    worker = yaml.safe_load(read("compose.gpu.yaml"))["services"]["worker"]
    assert worker["build"]["args"].keys() == set(
        re.findall(r"^ARG (\w+)=", read("Dockerfile"), re.MULTILINE)
    )
    assert worker["image"] not in {service["image"] for service in services.values()}


def test_the_worker_makes_its_pool_before_it_deploys(
    services: dict[str, dict[str, Any]],
) -> None:
    script = services["worker"]["command"][-1]
    pool = yaml.safe_load((INFRA.parent / "prefect.yaml").read_text())["deployments"][
        0
    ]["work_pool"]["name"]
    steps = [
        f"work-pool create {pool} ",
        "deploy --all",
        f"worker start --pool {pool} ",
    ]
    assert sorted(steps, key=script.index) == steps


def test_what_serves_is_watched_and_open_on_loopback_only(
    services: dict[str, dict[str, Any]],
) -> None:
    assert {
        name for name, service in services.items() if "healthcheck" not in service
    } == ENDS | PEOPLE
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_data_lie_in_named_volumes(services: dict[str, dict[str, Any]]) -> None:
    volumes = yaml.safe_load(read("compose.yaml"))["volumes"]
    mounted = {
        mount.split(":")[0]
        for service in services.values()
        for mount in service.get("volumes", [])
    }
    assert {mount for mount in mounted if not mount.startswith(".")} == set(volumes)


def test_nothing_starts_without_its_secrets(tmp_path: Path) -> None:
    """Every variable is one that env.sh writes, and has no default to fall back on."""
    used = re.findall(VARIABLE, read("compose.yaml"))
    assert [name for name, required in used if not required] == []
    subprocess.run(
        [INFRA / "env.sh", tmp_path / "env"], check=True, capture_output=True
    )
    written = dict(
        line.split("=", 1)
        for line in (tmp_path / "env").read_text().splitlines()
        if "=" in line
    )
    assert {name for name, _ in used} == set(written)
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600
    subprocess.run(
        [INFRA / "env.sh", tmp_path / "other"], check=True, capture_output=True
    )
    assert [line for line in written if f"{line}={written[line]}\n" in (tmp_path / "other").read_text()] == [
        "POSTGRES_PORT", "PREFECT_PORT", "MLFLOW_PORT", "S3_PORT",
        "MLFLOW_ADMIN_USERNAME", "AWS_DEFAULT_REGION",
    ]  # fmt: skip


def test_a_file_from_before_there_were_roles_keeps_its_admin(tmp_path: Path) -> None:
    old = "MLFLOW_TRACKING_USERNAME=elder\nMLFLOW_TRACKING_PASSWORD=old\nS3_PORT=9000\n"
    (tmp_path / "env").write_text(old)
    for _ in range(2):  # a second time adds nothing
        subprocess.run(
            [INFRA / "env.sh", tmp_path / "env"], check=True, capture_output=True
        )
        lines = (tmp_path / "env").read_text().splitlines()
        assert "\n".join(lines).startswith(old)
        for line in ("MLFLOW_ADMIN_USERNAME=elder", "MLFLOW_ADMIN_PASSWORD=old"):
            assert lines.count(line) == 1
        assert len([line for line in lines if line.startswith("S3_PORT=")]) == 1
        assert list(tmp_path.iterdir()) == [tmp_path / "env"]


# what each part is given of infra/.env, beside ports; s3 itself holds the keys of all
GIVEN = {
    "worker": {"S3_WORKER_KEY", "PREFECT_API_AUTH_STRING", "MLFLOW_WORKER_PASSWORD"},
    "promoter": {"S3_PROMOTER_KEY", "MLFLOW_PROMOTER_PASSWORD"},
    "auditor": {"S3_AUDITOR_KEY", "MLFLOW_AUDITOR_PASSWORD"},
    "prefect": {"PREFECT_DB_PASSWORD", "PREFECT_API_AUTH_STRING"},
    "mlflow": {
        "MLFLOW_DB_PASSWORD",
        "MLFLOW_ADMIN_USERNAME",
        "MLFLOW_ADMIN_PASSWORD",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "S3_MLFLOW_KEY",
    },
}


def test_no_part_has_a_secret_that_is_not_its_own(
    services: dict[str, dict[str, Any]],
) -> None:
    used = {
        name: {found[0] for found in re.findall(VARIABLE, str(service["environment"]))}
        - {"AWS_DEFAULT_REGION", "PREFECT_PORT"}
        for name, service in services.items()
        if name in GIVEN
    }
    assert used == GIVEN


def test_the_key_of_a_role_lies_where_no_other_role_looks(
    services: dict[str, dict[str, Any]],
) -> None:
    mounts = {
        name: {mount.split(":")[0] for mount in service.get("volumes", [])}
        for name, service in services.items()
    }
    for role in ("worker", "promoter"):
        assert {name for name in mounts if f"{role}-key" in mounts[name]} == {
            role,
            f"{role}-key",
        }
    for name in ("worker", "promoter", "auditor"):
        assert "trusted:/project/keys:ro" in services[name]["volumes"]
