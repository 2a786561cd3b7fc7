"""What elder serve reads in prefect.yaml, and what it refuses in a sentence; a server is in test_schedules.py."""

from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import ObjectNotFound

from elder.errors import UserError
from elder.locks import hold
from flows.cli import serve as serving
from flows.cli.serve import check_names, read_deployments, read_entries, read_schedule

ROOT = Path(__file__).parents[3]
FLOW = "    entrypoint: flows/nightly.py:nightly\n"


def written(folder: Path, *lines: str) -> Path:
    """Write a prefect.yaml with one deployment."""
    path = folder / "prefect.yaml"
    path.write_text(
        "deployments:\n  - name: mine\n"
        + FLOW
        + "".join(f"    {one}\n" for one in lines)
    )
    return path


def test_the_projects_own_deployments_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    nightly, weekly, promotion = read_deployments(ROOT / "prefect.yaml")
    assert nightly.full_name == "nightly/nightly"
    assert [one.schedule.cron for one in nightly.schedules] == ["0 2 * * *"]
    assert (nightly.concurrency_limit, nightly.work_pool_name) == (1, None)
    assert [one.schedule.cron for one in weekly.schedules] == ["0 4 * * 0"]
    assert weekly.parameters["file"] == "flows/weekly.yaml"
    assert promotion.schedules == []


def test_a_single_schedule_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = written(tmp_path, 'schedule: {cron: "5 3 * * *", timezone: Europe/Berlin}')
    (deployment,) = read_deployments(path)
    (found,) = deployment.schedules
    assert (found.schedule.cron, found.schedule.timezone) == (
        "5 3 * * *",
        "Europe/Berlin",
    )


def test_an_interval_is_in_seconds() -> None:
    assert read_schedule("mine", {"interval": 90}).interval == timedelta(seconds=90)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"cron": "0 2 * * *", "timezone": "Europe/Berlni"},
            "timezone 'Europe/Berlni', which is none",
        ),
        ({"cron": "0 2 * * *", "timezone": 7}, "timezone 7, which is none"),
        ({"cron": "0 25 * * *"}, "cron '0 25 \\* \\* \\*', which Prefect refuses: "),
        ({"cron": 5}, "cron 5, which Prefect refuses: "),
        ({"cron": "0 2 * * *", "timezoen": "UTC"}, "cron '0 2 .*refuses: .*timezoen"),
        ({"interval": "daily"}, "interval 'daily', which Prefect refuses: "),
        ({"interval": 1e300}, "interval 1e\\+300, which Prefect refuses: "),
        ({"timezone": "Etc/UTC"}, "says nothing; give one of cron, interval, rrule"),
        ({"cron": "0 2 * * *", "interval": 5}, "says cron and interval; give one of"),
    ],
)
def test_a_wrong_schedule_is_refused_by_name_and_value(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(
        UserError, match=f"the deployment 'mine' has a schedule.*{said}"
    ) as told:
        read_schedule("mine", values)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deployments:\n  - {entrypoint: a}\n", "deployments.0.name: Field required"),
        ("deployments: []\n", "deployments: List should have at least 1 item"),
        ("name: elder\n", "deployments: Field required"),
        ("- a\n", "its content: Input should be a valid dictionary"),
        ("a: [\n", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "prefect.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_entries(path)


def test_both_forms_of_schedules_are_refused(tmp_path: Path) -> None:
    path = written(
        tmp_path, 'schedule: {cron: "0 2 * * *"}', "schedules: [{interval: 60}]"
    )
    with pytest.raises(UserError, match="'mine' has both schedule and schedules"):
        read_entries(path)[0].all_schedules()


def test_the_deployments_of_workers_are_never_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools = {"a/worker": "elder", "a/served": None}

    def read(name: str) -> SimpleNamespace:
        if name not in pools:
            raise ObjectNotFound(Exception(name))
        return SimpleNamespace(work_pool_name=pools[name])

    @contextmanager
    def client(sync_client: bool) -> Any:
        yield SimpleNamespace(read_deployment_by_name=read, api_url="http://there/api")

    monkeypatch.setattr("prefect.client.orchestration.get_client", client)
    check_names(["a/served", "a/new"])
    with pytest.raises(
        UserError,
        match="a/worker at http://there/api .* pool 'elder'.*delete a/worker$",
    ):
        check_names(["a/served", "a/worker", "a/new"])


def test_a_deployment_that_would_give_prefect_a_secret_is_refused(
    tmp_path: Path,
) -> None:
    secret = "registry.tracking_uri=postgresql://me:hunter2@db/x"
    path = written(tmp_path, f"parameters: {{overrides: ['{secret}']}}")
    with pytest.raises(UserError, match="'mine' has a parameter with what") as told:
        read_entries(path)
    assert "hunter2" not in str(told.value)


def test_what_is_served_is_first_held_against_the_deployments_of_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []
    served: list[str] = []

    def check(names: list[str]) -> None:
        asked.append(names)
        if len(asked) == 1:
            raise UserError("that is a worker's")

    deployments = [SimpleNamespace(full_name=name) for name in ("a/one", "a/two")]
    monkeypatch.setattr(serving, "project_root", lambda: tmp_path)
    monkeypatch.setattr(serving, "prepare_environment", lambda: None)
    monkeypatch.setattr(serving, "check_server", lambda: None)
    monkeypatch.setattr(serving, "read_deployments", lambda _: deployments)
    monkeypatch.setattr(serving, "check_names", check)
    monkeypatch.setattr(
        "prefect.serve",
        lambda *all_of_them, **_: served.extend(one.full_name for one in all_of_them),
    )
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "INFO")
    with pytest.raises(UserError, match="that is a worker's"):
        serving.serve()
    assert served == []
    with (
        hold(tmp_path / "runs" / serving.LOCK, "free at first"),
        pytest.raises(UserError, match="another `elder serve` is at work"),
    ):
        serving.serve()
    assert served == []
    serving.serve()
    assert served == ["a/one", "a/two"]
    assert asked == [served] * 3
