"""The energy that a run takes, estimated offline by codecarbon.

The whole machine is measured, since every stage is a process of its own: what else runs there at the time counts too.
"""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any, Self

from elder import params
from elder.files import write_json
from elder.record import Json
from tasks.run.marks import read_mark

INTERVAL = 15  # seconds between two looks at the power
UNKNOWN = "USA"  # codecarbon wants a country; it bears on nothing but the CO2, which is then left out


class Meter:
    """Measures inside its ``with`` block, and keeps what it has seen in a file, so that a killed run loses little.

    However the block is left, nothing of it lives on: codecarbon's timers would write into the folder of a dead run.

    Args:
        path: JSON file; what earlier attempts of the run took is read from there and added.
        settings: whether to measure, and the country for CO2.
    """

    def __init__(self, path: Path, settings: params.Energy) -> None:
        self.path, self.country = path, settings.country
        self.before = read_mark(path) or {}
        self.tracker = _tracker(settings.country, self) if settings.measure else None

    def __enter__(self) -> Self:
        if self.tracker is not None:
            self.tracker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> dict[str, Json] | None:
        """End the measurement and return all attempts' sum, or None where nothing was measured.

        Returns:
            ``kwh``; ``co2_kg`` where the country is known; ``seconds`` measured; ``country``; ``by``, the program; and
            ``cpu``, how it knew the CPU's power, which is often an estimate from the load.
        """
        if self.tracker is None:
            return None
        tracker, self.tracker = self.tracker, None
        tracker.stop()
        return self.keep(tracker.final_emissions_data)

    def keep(self, seen: Any) -> dict[str, Json]:
        """Write and return what earlier attempts and this one took together.

        Args:
            seen: codecarbon's EmissionsData of this attempt.
        """
        total: dict[str, Json] = {
            "kwh": self.before.get("kwh", 0.0) + seen.energy_consumed,
            "seconds": round(self.before.get("seconds", 0.0) + seen.duration, 1),
            "country": self.country,
            "by": f"codecarbon {seen.codecarbon_version}, {seen.tracking_mode}",
            "cpu": seen.cpu_model,
            "gpu": seen.gpu_model or None,
        }
        if self.country is not None:
            total["co2_kg"] = self.before.get("co2_kg", 0.0) + seen.emissions
        write_json(self.path, total)
        return total


def _tracker(country: str | None, meter: Meter) -> Any:
    """Return codecarbon's tracker, not yet started, or None where codecarbon is not installed."""
    if importlib.util.find_spec("codecarbon") is None:
        return None
    os.environ.setdefault("CODECARBON_TELEMETRY_LEVEL", "disabled")
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output import BaseOutput

    class Keep(BaseOutput):
        def live_out(self, total: Any, delta: Any) -> None:
            meter.keep(total)

        def out(self, total: Any, delta: Any) -> None:
            meter.keep(total)

    logging.getLogger("codecarbon").disabled = True
    return OfflineEmissionsTracker(
        country_iso_code=country or UNKNOWN,
        measure_power_secs=INTERVAL,
        api_call_interval=1,
        tracking_mode="machine",
        save_to_file=False,
        allow_multiple_runs=True,
        log_level="critical",
        output_handlers=[Keep()],
    )
