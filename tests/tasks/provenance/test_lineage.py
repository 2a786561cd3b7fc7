"""Where a run comes from, and what energy it took."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from elder.params import Energy
from tasks.provenance.energy import Meter
from tasks.provenance.lineage import has_commit, lineage

SEEN = {
    "energy_consumed": 0.5,
    "emissions": 0.125,
    "duration": 10.0,
    "codecarbon_version": "3.3.2",
    "tracking_mode": "machine",
    "cpu_model": "a cpu",
    "gpu_model": "",
}


def test_commit_and_cleanliness_are_those_of_the_repository(tmp_path: Path) -> None:
    outside = lineage(tmp_path)
    assert (outside["git_commit"], outside["git_clean"], outside["deployment"]) == (
        None,
        None,
        None,
    )
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    found = lineage(tmp_path)
    assert len(found["git_commit"]) == 40
    assert found["git_clean"] is True
    assert "@" in found["started_by"]
    assert found["installed"]["torch"].startswith("2.")
    assert list(found["installed"]) == sorted(found["installed"])
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_bytes"] > 1 << 20
    (tmp_path / "new.py").write_text("")
    assert lineage(tmp_path)["git_clean"] is False
    assert has_commit(tmp_path, found["git_commit"])
    assert not has_commit(tmp_path, "0" * 40)
    assert not has_commit(tmp_path, "--batch")
    assert not has_commit(tmp_path, None)


def test_the_energy_of_killed_attempts_is_added(tmp_path: Path) -> None:
    path = tmp_path / "energy.json"
    first = Meter(path, Energy(measure=False, country="DEU"))
    first.keep(
        SimpleNamespace(**SEEN)
    )  # as codecarbon calls it now and then; then the process is killed
    again = Meter(path, Energy(measure=False, country="DEU"))
    again.keep(SimpleNamespace(**SEEN))
    total = again.keep(SimpleNamespace(**SEEN | {"energy_consumed": 0.75, "duration": 20.0}))
    # each look gives the sum of its own attempt: 0.5 + 0.75 kWh, 10 + 20 s, 0.125 + 0.125 kg
    assert (total["kwh"], total["seconds"], total["co2_kg"]) == (1.25, 30.0, 0.25)
    assert json.loads(path.read_text()) == total


def test_without_a_country_there_is_no_co2(tmp_path: Path) -> None:
    assert "co2_kg" not in Meter(tmp_path / "energy.json", Energy(measure=False)).keep(
        SimpleNamespace(**SEEN)
    )


def test_codecarbon_measures_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    meter = Meter(tmp_path / "energy.json", Energy(country="DEU"))
    assert sum(number * number for number in range(300_000)) > 0
    found = meter.stop()
    assert found["kwh"] > 0
    assert 0 < found["co2_kg"] < found["kwh"] * 2  # no country's electricity costs 2 kg a kWh
    assert found["by"].startswith("codecarbon ")
    assert meter.stop() is None
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["energy.json"]


def test_nothing_is_measured_where_that_is_switched_off(tmp_path: Path) -> None:
    assert Meter(tmp_path / "energy.json", Energy(measure=False)).stop() is None
    assert not list(tmp_path.iterdir())
