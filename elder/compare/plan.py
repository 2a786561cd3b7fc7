"""What is to be measured for a table: each row at each size, seed and text, and the dense model once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elder.compare.rows import RowSpec
from elder.fingerprint import (
    Fingerprint,
    calibration_parts,
    model_parts,
    protocol_parts,
    recipe_of,
    text_digest,
)
from elder.params import Params

DENSE = "dense"


@dataclass(frozen=True)
class Size:
    """How many layers go: so many, or a share of all; the parameters of ``select`` of the same names."""

    layers: int | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One number of the table to be: a row, or the dense model, with all parameters settled.

    Attributes:
        row: the row's name, or ``dense``.
        settings: all parameters; texts are files.
        slug: name of its files; it ends in a digest of all that the numbers depend on.
    """

    row: str
    settings: Params
    slug: str

    @property
    def title(self) -> str:
        """Name it for people: the row, its seed and, where there may be several, its size and its text."""
        return f"{self.row}, seed {self.settings.calibration.seed}"

    @property
    def full_title(self) -> str:
        """Name it for people so that no other measurement of a comparison has the same name."""
        select = self.settings.select
        size = (
            f"ratio {select.ratio}"
            if select.layers is None
            else f"{select.layers} layers"
        )
        return f"{self.title}, {size}, {self.settings.calibration.source}"

    def path(self, folder: Path) -> Path:
        """Return the file of its result."""
        return folder / "rows" / f"{self.slug}.json"


def plan(
    rows: list[RowSpec],
    base: Params,
    sizes: list[Size],
    seeds: list[int],
    calibrations: list[str],
) -> list[Measurement]:
    """List all measurements: the dense model first, then seed by seed, so that an early table has all rows.

    Args:
        rows: what is compared.
        base: parameters that all rows share.
        sizes: how many layers go.
        seeds: of the choice of blocks and of all training.
        calibrations: texts to calibrate on.

    Raises:
        UserError: for a text that is missing, or a change that the parameters refuse.
    """
    shared = Fingerprint(model_parts(base)) | protocol_parts(base)
    for path in calibrations:
        text_digest(Path(path))  # a missing one is said before any work
    measurements = [Measurement(DENSE, base, f"{DENSE}-{shared.short}")]
    for seed in seeds:
        for text in calibrations:
            for size in sizes:
                settings = _with(base, size, seed, text)
                measurements += _of_rows(rows, settings, shared)
    return measurements


def _of_rows(
    rows: list[RowSpec], base: Params, shared: Fingerprint
) -> Iterator[Measurement]:
    """Yield the measurements of all rows; rows that mean the same get one slug."""
    for row in rows:
        settings = row.settings(base)
        key = shared | {"recipe": recipe_of(settings)} | calibration_parts(settings)
        slug = f"{settings.select.method}-s{settings.calibration.seed}-{key.short}"
        yield Measurement(row.name, settings, slug)


def _with(base: Params, size: Size, seed: int, text: str) -> Params:
    """Return the parameters with a size, a seed and a calibration text."""
    select: dict[str, float | None] = {"layers": size.layers}
    if size.ratio is not None:
        select["ratio"] = size.ratio
    calibration = {"source": text, "seed": seed}
    return base.model_copy(
        update={
            "calibration": base.calibration.model_copy(update=calibration),
            "select": base.select.model_copy(update=select),
        }
    )
