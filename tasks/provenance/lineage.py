"""Where a run comes from: the code's commit, the packages, the hardware, and who or what started it."""

import os
import re
import shutil
import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from elder.params import Signing
from elder.progress import say
from elder.record import Json, Lineage
from tasks.provenance.identity import operating_system_user


def lineage(root: Path) -> Lineage:
    """Return commit, cleanliness of the tree, starter, packages and hardware; None for what cannot be known here."""
    commit = git(root, "rev-parse", "HEAD")
    if commit is None:
        say(f"the record will name no commit of the code: {why_no_commit(root)}")
    # whom to believe changes no number, and is written by the first run of a project
    status = git(root, "status", "--porcelain", "--", ".", f":!{Signing().trusted}")
    return Lineage(
        git_commit=commit,
        git_clean=None if status is None else status == "",
        started_by=operating_system_user(),
        deployment=_deployment(),
        installed=_installed(),
        hardware=hardware(),
    )


def git(root: Path, *arguments: str) -> str | None:
    """Return what a git command says, or None where it fails or there is no git."""
    done = _output("git", "-C", str(root), *arguments)
    return done if done is None else done.strip()


def refused_repository(root: Path) -> str | None:
    """Return the repository that git does not read, because another user owns it; None where it reads what it finds."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except OSError:
        return None
    found = re.search("dubious ownership in repository at '(.*)'", done.stderr)
    return found and found[1]


def why_no_commit(root: Path) -> str:
    """Say why git names no commit for a folder, and what to do about it."""
    refused = refused_repository(root)
    if refused:
        return (
            f"git does not read {refused}, which another user owns: git config --global --add safe.directory"
            f" {refused}, or where there is no home GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory"
            f" GIT_CONFIG_VALUE_0={refused} in the environment, lets it"
        )
    if shutil.which("git") is None:
        return "git is not installed here"
    return f"{root} is in no git repository that has a commit"


def has_commit(root: Path, commit: str | None) -> bool:
    """Say whether a repository knows a commit, named in full."""
    # a record may hold anything, such as an option
    named = re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", commit or "")
    return (
        named is not None
        and git(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None
    )


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _deployment() -> dict[str, Json] | None:
    """Return the Prefect deployment that started this flow run, and whether by its schedule; None where none did."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.runtime import flow_run

    if not flow_run.id:
        return None
    with get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(flow_run.root_flow_run_id or flow_run.id)
            if run.deployment_id is None:
                return None
            return {
                "name": client.read_deployment(run.deployment_id).name,
                "scheduled": run.auto_scheduled,
            }
        except ObjectNotFound:  # deleted since
            return None


def _installed() -> dict[str, str]:
    """Return {name: version} of all packages of this Python."""
    versions = {str(one.metadata["Name"]): one.version for one in distributions()}
    return dict(sorted(versions.items()))


def hardware() -> dict[str, Json]:
    """Return processor, cores, memory and GPUs of this machine."""
    import psutil

    gpus = _output(
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    )
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus.strip().splitlines() if gpus else [],
    }


@cache
def _cpu() -> str:
    """Return the processor's name; asking for it takes a second."""
    from cpuinfo import get_cpu_info

    info = get_cpu_info()
    return info.get("brand_raw") or info.get("arch_string_raw", "")
