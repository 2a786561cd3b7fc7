"""What a measurement depends on: every section of the parameters is classified, and just these count."""

from pathlib import Path
from typing import Any

import pytest

from elder.compare.plan import Measurement, Size, plan
from elder.compare.rows import parse_rows
from elder.compare.run import Failure, failures_by_name
from elder.params import Params

RECIPE: dict[str, dict[str, Any]] = {
    "select": {"protect": (0,)},
    "regularise": {"epochs": 3},
    "compensate": {"method": "linear"},
    "recover": {"epochs": 3},
}
SHARED: dict[str, dict[str, Any]] = {
    "model": {"dtype": "float32"},
    "calibration": {"seq_len": 16},
    "evaluate": {"max_tokens": 320},
}
WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "speed": {"batch": 3},
    "gate": {"mode": "dry-run"},
    "store": {"url": "elsewhere"},
    "registry": {"name": "another"},
    "notify": {"events": ("failure",)},
    "signing": {"private_key": "other.key"},
    "energy": {"measure": False},
    "launch": {"processes": 2},
}
CHANGES = RECIPE | SHARED | WITHOUT_EFFECT


@pytest.fixture(scope="module")
def base(model_folder: Path, text_file: Path) -> Params:
    return Params.model_validate(
        {
            "model": {"name": str(model_folder)},
            "calibration": {"source": str(text_file), "samples": 8, "seq_len": 32},
            "evaluate": {
                "in_domain": str(text_file),
                "out_of_domain": str(text_file),
                "tasks": (),
            },
        }
    )


def planned(
    base: Params, sizes: tuple[Size, ...] = (Size(layers=2),)
) -> list[Measurement]:
    return plan(
        parse_rows("default"), base, list(sizes), [0], [base.calibration.source]
    )


@pytest.mark.parametrize("section", Params.model_fields)
def test_every_section_counts_or_counts_not(base: Params, section: str) -> None:
    assert section in CHANGES, f"say above whether a measurement depends on {section}"
    values = getattr(base, section).model_dump() | CHANGES[section]
    changed = base.model_copy(
        update={section: type(getattr(base, section)).model_validate(values)}
    )
    assert changed != base
    (dense, row), (other_dense, other_row) = planned(base), planned(changed)
    assert (row.slug != other_row.slug) == (section in RECIPE | SHARED)
    assert (dense.slug != other_dense.slug) == (section in SHARED)


@pytest.mark.parametrize("section", [*SHARED, *WITHOUT_EFFECT])
def test_a_row_may_change_nothing_but_its_recipe(base: Params, section: str) -> None:
    key = next(iter(CHANGES[section]))
    (row,) = parse_rows(f"default[{section}.{key}=1]")
    with pytest.raises(Exception, match="which all rows share"):
        row.settings(base)


def test_failures_of_one_row_at_several_sizes_are_all_told(base: Params) -> None:
    sizes = Size(layers=2), Size(ratio=0.5), Size(ratio=0.50000001)
    _, first, second, third = planned(base, sizes)
    once = failures_by_name([Failure(first, "too few")])
    assert once == {"default, seed 0": "too few"}
    failures = [
        Failure(first, "too few"),
        Failure(second, "too many"),
        Failure(third, "too many by a hair"),
    ]
    source = base.calibration.source
    assert failures_by_name(failures) == {
        f"default, seed 0, 2 layers, {source}": "too few",
        f"default, seed 0, ratio 0.5, {source}": "too many",
        f"default, seed 0, ratio 0.50000001, {source}": "too many by a hair",
    }
