"""Which folder a run gets, and when what lies there is gone on with."""

import time
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import Timeout

from elder.errors import UserError
from elder.params import Params
from tasks.run import folder as rundir
from tasks.run.folder import close_run, file_stamps, forget_other_inputs, run_folder

SECRET = "hunter2secret"


def fail(root: Path, params: Params, made: str, error: Exception) -> str:
    """Start a run that makes a folder in its own and fails; returns its id."""
    with suppress(type(error)), run_folder(root, params, "default") as (run_id, folder):
        (folder / made).mkdir(exist_ok=True)
        raise error
    return run_id


def interrupted(root: Path, params: Params) -> str:
    """Start a run that is interrupted after its first stage; returns its id."""
    return fail(root, params, "work", RuntimeError("killed"))


def test_an_unfinished_run_is_gone_on_with_until_it_is_closed(tmp_path: Path) -> None:
    first = interrupted(tmp_path, Params())
    assert interrupted(tmp_path, Params()) == first
    with run_folder(tmp_path, Params(), "sleb") as (other, _):
        assert other != first
    with run_folder(tmp_path, Params(), "default") as (again, folder):
        assert again == first
        close_run(folder, {"run_id": again})
    assert rundir._finished(tmp_path / "runs" / first)


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    fail(tmp_path, Params(), "data", UserError("the calibration text is empty"))
    assert list((tmp_path / "runs").iterdir()) == []


def test_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(Timeout), run_folder(tmp_path, Params(), "default"):
        raise Timeout("a lock that the run itself waited for")


def test_a_folder_that_another_run_holds_is_left_alone(tmp_path: Path) -> None:
    first = interrupted(tmp_path, Params())
    time.sleep(1)  # a run is named by the second of its start
    with run_folder(tmp_path, Params(), "default") as (held, folder):
        assert held == first
        with run_folder(tmp_path, Params(), "default") as (other, _):
            assert other != first
        close_run(folder, {})


def test_the_parameters_with_their_password_are_for_the_owner_only(tmp_path: Path) -> None:
    params = Params.model_validate(
        {"registry": {"tracking_uri": f"postgresql://me:{SECRET}@db/x"}}
    )
    with run_folder(tmp_path, params, "default") as (_, folder):
        assert (folder / "params.yaml").stat().st_mode & 0o077 == 0
        assert SECRET in (folder / "params.yaml").read_text()


def test_what_was_done_with_other_inputs_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("x")
    forget_other_inputs(tmp_path, {"data": "a"})
    (tmp_path / "work").mkdir()
    (tmp_path / "candidate.json").write_text("{}")
    forget_other_inputs(tmp_path, {"data": "a"})
    assert (tmp_path / "work").exists()
    forget_other_inputs(tmp_path, {"data": "b"})
    assert {path.name for path in tmp_path.iterdir()} == {"params.yaml", "inputs.json"}


def test_another_model_under_the_same_name_has_other_stamps(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a")
    first = file_stamps(tmp_path)
    assert file_stamps(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"ab")
    assert file_stamps(tmp_path) != first
