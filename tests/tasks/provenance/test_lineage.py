"""Where a run comes from."""

import subprocess
from pathlib import Path

from tasks.provenance.lineage import has_commit, lineage


def test_commit_and_cleanliness_are_those_of_the_repository(tmp_path: Path) -> None:
    outside = lineage(tmp_path)
    assert outside.git_commit is outside.git_clean is outside.deployment is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
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
