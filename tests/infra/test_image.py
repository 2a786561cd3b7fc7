"""What the image leaves out: every file that may hold a secret, and none that git tracks."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IGNORED = ROOT / "infra" / "Dockerfile.dockerignore"
TOKENS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern as docker reads it: from the root of the context, and of a folder all that is in it."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    return re.compile("".join(TOKENS.get(part, re.escape(part)) for part in parts))


def is_left_out(path: str) -> bool:
    """Say whether docker leaves a file out: the last line that names it, or a folder that it is in, decides."""
    left_out = False
    parents = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 2)]
    for line in IGNORED.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = compile_pattern(line.removeprefix("!"))
        if any(pattern.fullmatch(parent) for parent in parents):
            left_out = not line.startswith("!")
    return left_out


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".env.local",
        "infra/.env",
        "infra/.env.bak",
        "flows/.envrc",
        "infra/.native/postgres-password",
        "keys/signing.pem",
        "signing.pem",
        "a/b/server.pem",
        "tests/records/f46e5ac/signing.pem",
        "keys/promoter.key",
        ".netrc",
        "home/.pgpass",
        ".aws/credentials",
        "a/.ssh/id_ed25519",
        "secrets.yaml",
        "infra/kubernetes/secrets.env",
        ".dvc/config.local",
        ".dvc/tmp/lock",
        ".dvc/cache/files/md5/00/1",
        ".git/config",
        ".git/config.worktree",
        ".git/credentials",
        ".git/.git-credentials",
        ".git/logs/HEAD",
        ".git/FETCH_HEAD",
        ".git/hooks/pre-push",
        "backup/mlflow.dump",
        "backup/elder/models/x/record.json",
        "old/prefect.dump",
        "old/dump.sql.gz",
        "mlflow.db",
        "mlflow.db-wal",
        "mlartifacts/1/2/artifacts/record.json",
        "store/models/x/manifest.json",
        "runs/1/record.json",
        "build/pipelines/x/params.yaml",
        ".venv/bin/python",
    ],
)
def test_secrets_and_data_are_left_out(path: str) -> None:
    assert is_left_out(path)


def test_all_that_git_tracks_is_in_the_image() -> None:
    """Otherwise a run inside would find a tree with changes."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True
    )
    tracked = done.stdout.decode().strip("\0").split("\0")
    assert len(tracked) > 100
    assert [path for path in tracked if is_left_out(path)] == []


def test_git_says_there_what_it_says_here(tmp_path: Path) -> None:
    """Commit and cleanness of the tree go into each record: they need nothing of .git that is left out."""
    copy = tmp_path / "copy"
    for command in (
        ["git", "init", "-q", str(copy)],
        ["git", "-C", str(copy), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        + ["commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(command, check=True)
    for path in (copy / ".git").rglob("*"):
        if path.is_file() and is_left_out(path.relative_to(copy).as_posix()):
            path.unlink()
    assert not (copy / ".git" / "config").exists()
    for question in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        told = subprocess.run(
            ["git", "-C", str(copy), *question], capture_output=True, check=False
        )
        assert told.returncode == 0, told.stderr
    assert told.stdout == b""
