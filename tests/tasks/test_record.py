"""What the dense results are cached by, what is tried again, and where passwords do not get to."""

from pathlib import Path

import pytest
from prefect.states import Completed, Failed

from elder.errors import UserError
from elder.params import Params
from elder.settings import validate
from tasks.errors import Unreachable
from tasks.record import dense_key, settle
from tasks.retry import try_again

DATA = {
    "in_domain.txt": "1",
    "out_of_domain.txt": "2",
    "pins/tokenizer.json": "3",
    "calibration.txt": "4",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "data" / "tasks").mkdir(parents=True)
    (tmp_path / "data" / "tasks" / "a.yaml").write_text("task: a")
    return tmp_path


def test_the_dense_results_depend_on_what_they_are_measured_with(root: Path) -> None:
    def key(weights: str = "w", data: dict = DATA, **sections: dict) -> str:
        return dense_key(weights, validate(sections), data, root)

    same = key()
    assert key(select={"ratio": 0.5}, recover={"epochs": 1}, gate={"mode": "off"}) == same
    assert key(data=DATA | {"calibration.txt": "5"}) == same
    assert key(evaluate={"baselines": [], "in_domain": "elsewhere.txt"}) == same
    others = [
        key(weights="v"),
        key(evaluate={"limit": 5}),
        key(evaluate={"task_data": None}),
        key(evaluate={"tasks": []}),
        key(model={"dtype": "bfloat16"}),
        key(calibration={"seq_len": 64}),
        key(data=DATA | {"in_domain.txt": "5"}),
        key(data=DATA | {"pins/tokenizer.json": "5"}),
    ]
    (root / "data" / "tasks" / "a.yaml").write_text("task: b")
    assert len({same, key(), *others}) == 10


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    assert try_again(None, None, Failed(data=Unreachable("the server is away")))
    assert try_again(None, None, Failed(data=RuntimeError("who knows")))
    assert not try_again(None, None, Failed(data=UserError("access denied")))
    assert not try_again(None, None, Completed(data=1))


def test_what_is_published_is_settled_once(tmp_path: Path) -> None:
    path = tmp_path / "settled.json"
    assert settle.fn({"created": "today", "kept": (1, 2)}, path) == {
        "created": "today",
        "kept": [1, 2],
    }
    assert settle.fn({"created": "tomorrow"}, path)["created"] == "today"


def test_no_password_reaches_the_stages(tmp_path: Path) -> None:
    from flows.compress import _write_params

    settings = Params.model_validate(
        {"registry": {"tracking_uri": "postgresql://me:hunter2@db/x"}}
    )
    found = settings.model.model_copy(update={"name": "build/models/x", "revision": "c0ffee"})
    text = _write_params(settings, found, tmp_path).read_text()
    assert "hunter2" not in text
    assert "name: build/models/x" in text
    assert f"in_domain: {tmp_path}/data/in_domain.txt" in text
