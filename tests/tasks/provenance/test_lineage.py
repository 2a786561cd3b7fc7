"""Where a run comes from."""

import re
import subprocess
from pathlib import Path

import pytest

from elder.errors import UserError
from elder.params import Params
from flows.checks.inputs import code
from tasks.provenance.lineage import has_commit, lineage, why_no_commit


def make_repository(folder: Path) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)


def test_commit_and_cleanliness_are_those_of_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = lineage(tmp_path)
    assert outside.git_commit is outside.git_clean is outside.deployment is None
    assert f"no commit of the code: {tmp_path} is in no git" in capsys.readouterr().err
    assert "the record will name none" in code(Params(), tmp_path)
    make_repository(tmp_path)
    assert "no commit" not in capsys.readouterr().err
    inside = lineage(tmp_path)
    assert len(inside.git_commit) == 40
    assert inside.git_clean is True
    assert "@" in inside.started_by
    assert inside.installed["torch"].startswith("2.")
    assert list(inside.installed) == sorted(inside.installed)
    assert inside.hardware["cores"] >= 1
    assert inside.hardware["memory_bytes"] > 1 << 20
    (tmp_path / "new.py").write_text("")
    assert lineage(tmp_path).git_clean is False
    assert has_commit(tmp_path, inside.git_commit)
    assert not has_commit(tmp_path, "0" * 40)
    assert not has_commit(tmp_path, "--batch")
    assert not has_commit(tmp_path, None)


def test_a_repository_of_another_user_is_named_and_how_git_reads_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_repository(tmp_path)
    assert code(Params(), tmp_path).startswith("commit ")
    # git's own tests make it see another owner so
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError, match="another user owns.*safe.directory") as refused:
        code(Params(), tmp_path)
    assert lineage(tmp_path).git_commit is None
    assert str(refused.value) in capsys.readouterr().err
    assert why_no_commit(tmp_path) == str(refused.value)
    for setting in re.findall(r"GIT_CONFIG_\w+=\S+", str(refused.value)):
        monkeypatch.setenv(*setting.split("=", 1))
    assert code(Params(), tmp_path).startswith("commit ")
