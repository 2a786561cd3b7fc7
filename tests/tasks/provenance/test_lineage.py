"""Where a run comes from."""

import subprocess
from pathlib import Path

from tasks.provenance.lineage import has_commit, lineage


def test_commit_and_cleanliness_are_those_of_the_repository(tmp_path: Path) -> None:
    outside = lineage(tmp_path)
    assert (outside["git_commit"], outside["git_clean"], outside["deployment"]) == (
        None,
        None,
        None,
    )
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    found = lineage(tmp_path)
    assert len(found["git_commit"]) == 40
    assert found["git_clean"] is True
    assert "@" in found["started_by"]
    assert found["installed"]["torch"].startswith("2.")
    assert list(found["installed"]) == sorted(found["installed"])
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_bytes"] > 1 << 20
    (tmp_path / "new.py").write_text("")
    assert lineage(tmp_path)["git_clean"] is False
    assert has_commit(tmp_path, found["git_commit"])
    assert not has_commit(tmp_path, "0" * 40)
    assert not has_commit(tmp_path, "--batch")
    assert not has_commit(tmp_path, None)
