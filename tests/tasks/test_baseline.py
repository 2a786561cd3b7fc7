"""What the row of a baseline is kept by."""

from elder.fingerprint import Fingerprint
from elder.settings import validate
from tasks.baseline import baseline_fingerprint


def test_a_baseline_is_measured_anew_only_if_something_it_depends_on_changed() -> None:
    def key(
        name: str = "sleb", dense: str = "d", blocks: str = "b", **sections: dict
    ) -> str:
        key = Fingerprint({"weights": dense})
        return baseline_fingerprint(name, key, blocks, validate(sections)).digest

    same = key()
    assert (
        key(
            recover={"epochs": 1},
            gate={"mode": "off"},
            evaluate={"baselines": ["sleb"]},
        )
        == same
    )
    others = [
        key(name="shortgpt"),
        key(dense="e"),
        key(blocks="c"),
        key(select={"ratio": 0.5}),
        key(calibration={"seed": 1}),
    ]
    assert len({same, *others}) == 6
