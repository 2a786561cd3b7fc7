"""A process finds a home and a user's name where the machine has neither, as in a container with any user id."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

from elder.errors import UserError
from elder.process import have_a_home

NAMES = ("HOME", "PREFECT_HOME", "XDG_CACHE_HOME", "LOGNAME", "USER", "LNAME")


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run as a user whom the system does not know, in a folder of one's own."""
    for name in (*NAMES, "USERNAME"):
        monkeypatch.setenv(name, "x")  # so that it comes back however it was
        monkeypatch.delenv(name)

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)


def test_who_has_no_home_gets_one_in_the_working_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    have_a_home()
    assert Path.home() == tmp_path / "build" / "home"
    assert Path.home().is_dir()
    assert getpass.getuser() == str(os.geteuid())
    assert f"user {os.geteuid()} has no home" in capsys.readouterr().err
    have_a_home()
    assert capsys.readouterr().err == ""


def test_a_home_that_cannot_be_written_keeps_what_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    monkeypatch.setenv("XDG_CACHE_HOME", "elsewhere")
    have_a_home()
    assert Path.home() == tmp_path / "absent"
    own = tmp_path / "build" / "home"
    assert os.environ["PREFECT_HOME"] == str(own / ".prefect")
    assert os.environ["XDG_CACHE_HOME"] == "elsewhere"


def test_where_no_home_can_be_made_a_sentence_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "build").touch()
    with pytest.raises(UserError, match=r"no home, and .* cannot be made .*: set HOME"):
        have_a_home()
