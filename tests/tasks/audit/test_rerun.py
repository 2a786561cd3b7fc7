"""A run is made again from its own numbers, whatever the machine's ``ELDER_SET`` says, by old code and by new."""

import json
from pathlib import Path
from typing import Any

import pytest

from elder.errors import UserError
from elder.record import Record
from elder.settings import read_params, validate
from tasks.audit.rerun import Rerun

OLD = Path(__file__).parents[2] / "records" / "f46e5ac" / "published" / "record.json"
READ = "import sys; from elder.settings import read_params as r; print(r(None, None, {}).model_dump_json())"


@pytest.fixture
def record() -> dict[str, Any]:
    return json.loads(OLD.read_text(encoding="utf-8"))


def rerun(record: dict[str, Any], root: Path, code: Path) -> Rerun:
    return Rerun(Record.model_validate(record), root, code, validate({}))


def test_no_number_of_elder_set_reaches_the_code_that_runs_again(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = (
        "store.url=elsewhere select.ratio=0.5 select.elder.lambda1=0.3 notify.events=[]"
    )
    monkeypatch.setenv("ELDER_SET", given)
    monkeypatch.chdir(tmp_path)
    assert read_params(None, None, {}).select.ratio == 0.5  # outside, it holds
    project = Path(__file__).parents[3]
    (tmp_path / "elder").symlink_to(project / "elder")
    there = json.loads(rerun(record, project, tmp_path).python("-c", READ))
    assert (there["store"]["url"], there["notify"]["events"]) == ("elsewhere", [])
    assert there["select"]["ratio"] == 0.25
    assert there["select"]["elder"]["lambda1"] == 0.05


def test_its_own_commit_reads_the_parameters_as_they_stand_and_the_present_code_anew(
    record: dict[str, Any], tmp_path: Path
) -> None:
    told = record["lineage"]["params"]
    assert "lambda1" in told["select"]
    own = rerun(record, tmp_path, tmp_path / "commit").params()
    assert own["select"] == told["select"]
    present = rerun(record, tmp_path, tmp_path).params()
    assert present["select"]["elder"]["lambda1"] == told["select"]["lambda1"]
    assert "lambda1" not in present["select"]
    assert validate(present).model_dump(mode="json") == present


@pytest.mark.parametrize("section", ["model.name", "calibration.source", "the model"])
@pytest.mark.parametrize(
    "name", ["/etc", "../../x", "data/../../x", "~/x", "--set=a.b=1", "a\0b"]
)
def test_a_record_leads_to_no_file_outside_the_project_by_itself(
    record: dict[str, Any], tmp_path: Path, section: str, name: str
) -> None:
    if section == "the model":
        record["model"]["name"], section = name, "model.name"
    else:
        part, key = section.split(".")
        record["lineage"]["params"][part][key] = name
    with pytest.raises(
        UserError, match=f"as {section}, which leads out of the project"
    ):
        rerun(record, tmp_path, tmp_path).params()


@pytest.mark.parametrize(
    "name",
    ["models/x", "./models//x", "owner/name", "s3://bucket/x", "models:/x@champion"],
)
def test_names_in_the_project_or_of_services_are_followed(
    record: dict[str, Any], tmp_path: Path, name: str
) -> None:
    record["model"]["name"] = record["lineage"]["params"]["model"]["name"] = name
    assert rerun(record, tmp_path, tmp_path).params()["model"]["name"] == name


def test_a_place_outside_the_project_is_followed_where_the_parameters_of_here_name_it(
    record: dict[str, Any], tmp_path: Path
) -> None:
    name = str(tmp_path / "models" / "dense")
    record["model"]["name"] = record["lineage"]["params"]["model"]["name"] = name
    here = validate({"model": {"name": name}})
    again = Rerun(Record.model_validate(record), tmp_path, tmp_path, here)
    assert again.params()["model"]["name"] == name
