"""What the dense results are cached by."""

from pathlib import Path

import pytest

from elder.record import ModelFacts
from elder.settings import validate
from tasks.rows import dense_fingerprint
from tasks.run.run import Run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data" / "tasks").mkdir(parents=True)
    (tmp_path / "data" / "tasks" / "a.yaml").write_text("task: a")
    (tmp_path / "run" / "data").mkdir(parents=True)
    for name in ("in_domain", "out_of_domain"):
        (tmp_path / "run" / "data" / f"{name}.txt").write_text(name)
    return tmp_path


def digest_of(
    root: Path,
    weights: str = "w",
    dtype: str = "float32",
    tokenizer: str = "t",
    **sections: dict,
) -> str:
    run = Run(root, root / "run", validate(sections), "default", "models/tiny", None)
    model = ModelFacts(name="models/tiny", digest=weights, dtype=dtype)
    return dense_fingerprint(run, model, tokenizer).digest


def test_the_dense_results_depend_on_what_they_are_measured_with(root: Path) -> None:
    same = digest_of(root)
    untouched = {
        "select": {"ratio": 0.5},
        "recover": {"epochs": 1},
        "gate": {"mode": "off"},
    }
    assert digest_of(root, **untouched) == same
    # The run's own copies of the texts count, not where they came from.
    assert (
        digest_of(root, evaluate={"baselines": [], "in_domain": "elsewhere.txt"})
        == same
    )
    others = [
        digest_of(root, weights="v"),
        digest_of(root, dtype="bfloat16"),
        digest_of(root, tokenizer="u"),
        digest_of(root, evaluate={"limit": 5}),
        digest_of(root, evaluate={"task_data": None}),
        digest_of(root, evaluate={"tasks": []}),
        digest_of(root, calibration={"seq_len": 64}),
    ]
    (root / "run" / "data" / "in_domain.txt").write_text("another text")
    others.append(digest_of(root))
    (root / "data" / "tasks" / "a.yaml").write_text("task: b")
    others.append(digest_of(root))
    assert len({same, *others}) == 10


def test_the_dense_results_are_kept_for_the_device_that_was_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = digest_of(root, model={"device": "auto"})
    assert digest_of(root, model={"device": "cpu"}) == here  # there is no GPU
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert digest_of(root, model={"device": "auto"}) != here
