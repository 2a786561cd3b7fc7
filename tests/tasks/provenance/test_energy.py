"""What energy a run took, and that nothing goes on measuring when it has ended."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from elder.params import Energy
from tasks.provenance.energy import Meter

SEEN = {
    "energy_consumed": 0.5,
    "emissions": 0.125,
    "duration": 10.0,
    "codecarbon_version": "3.3.2",
    "tracking_mode": "machine",
    "cpu_model": "a cpu",
    "gpu_model": "",
}


def test_the_energy_of_killed_attempts_is_added(tmp_path: Path) -> None:
    path = tmp_path / "energy.json"
    first = Meter(path, Energy(measure=False, country="DEU"))
    # As codecarbon calls it now and then; then the process is killed.
    first.keep(SimpleNamespace(**SEEN))
    again = Meter(path, Energy(measure=False, country="DEU"))
    again.keep(SimpleNamespace(**SEEN))
    total = again.keep(
        SimpleNamespace(**SEEN | {"energy_consumed": 0.75, "duration": 20.0})
    )
    # each look gives the sum of its own attempt: 0.5 + 0.75 kWh, 10 + 20 s, 0.125 + 0.125 kg
    assert (total["kwh"], total["seconds"], total["co2_kg"]) == (1.25, 30.0, 0.25)
    assert json.loads(path.read_text()) == total


def test_a_count_that_a_power_cut_emptied_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "energy.json"
    path.write_text("")
    meter = Meter(path, Energy(measure=False))
    assert meter.keep(SimpleNamespace(**SEEN))["kwh"] == 0.5


def test_without_a_country_there_is_no_co2(tmp_path: Path) -> None:
    meter = Meter(tmp_path / "energy.json", Energy(measure=False))
    assert "co2_kg" not in meter.keep(SimpleNamespace(**SEEN))


def test_codecarbon_measures_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Meter(tmp_path / "energy.json", Energy(country="DEU")) as meter:
        assert sum(number * number for number in range(300_000)) > 0
        total = meter.stop()
    assert total["kwh"] > 0
    # no country's electricity costs 2 kg a kWh
    assert 0 < total["co2_kg"] < total["kwh"] * 2
    assert total["by"].startswith("codecarbon ")
    assert meter.stop() is None
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["energy.json"]


def test_a_failing_run_leaves_no_timer_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    def run() -> None:
        with Meter(tmp_path / "energy.json", Energy()):
            assert set(threading.enumerate()) > before
            raise RuntimeError("the stage failed")

    with pytest.raises(RuntimeError, match="the stage failed"):
        run()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before
    assert json.loads((tmp_path / "energy.json").read_text())["kwh"] > 0


def test_nothing_is_measured_where_that_is_switched_off(tmp_path: Path) -> None:
    with Meter(tmp_path / "energy.json", Energy(measure=False)) as meter:
        assert meter.stop() is None
    assert not list(tmp_path.iterdir())
