"""Which tasks there are: those of a local folder first, then lm-eval's own, looked up without its full index."""

import functools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from elder.errors import UserError, nearest
from elder.evaluation.harness import FEWSHOT_SEED
from elder.evaluation.local_tasks import use_local_data

# a YAML line whose whole value may name a task, group or tag
NAMED = re.compile(
    r"""^(?:["']?(?:task|group|tag)["']?:|[ \t]*-)[ \t]*["']?([^\s"',:]+)["']?,?[ \t]*$""",
    re.MULTILINE,
)


def load_tasks(names: list[str], folder: Path | None) -> dict[str, Any]:
    """Load tasks with their data, and set what lm-eval's `simple_evaluate` would; that also lists all packages: 1 s.

    Raises:
        UserError: if a task is unknown, or its data cannot be loaded.
    """
    manager = task_manager(names, folder)
    try:
        loaded = manager.load(names)
    # datasets, the Hub client, jinja and lm-eval each raise their own types
    except Exception as error:
        first_line = str(error).strip().split("\n")[0][:300] or type(error).__name__
        hint = ""
        if isinstance(error, ConnectionError):
            hint = "; or put its data into a folder of that name in task_data"
        raise UserError(
            f"the tasks {', '.join(names)} cannot be loaded: {first_line}{hint}"
        ) from None
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def task_manager(names: list[str], folder: Path | None) -> Any:
    """Return lm-eval's task manager, which knows the tasks of the present folder and those of lm-eval that are needed.

    Args:
        names: tasks, groups or tags.
        folder: of the task data, which is the present folder; None where there is none.

    Raises:
        UserError: if a task is unknown.
    """
    from lm_eval.tasks import TaskManager

    local = [str(Path.cwd())] if folder else []
    manager = _manager_of_folders(names, local)
    for name in names:
        if name not in manager.task_index:
            own = TaskManager(include_path=local, include_defaults=False).all_tasks
            raise UserError(
                f"there is no task {name!r} here or in lm-eval; {nearest(name, own or names)}"
            )
    if folder:
        _use_local_data(names, manager.task_index)
    return manager


def _manager_of_folders(names: list[str], local: list[str]) -> Any:
    """Return a manager of the local folder and of just those folders of lm-eval that define what is reachable."""
    from lm_eval.tasks import TaskManager

    folders: set[str] = set()
    while True:
        # the local folder comes last, so that its definitions win
        manager = TaskManager(
            include_path=[*sorted(folders), *local], include_defaults=False
        )
        index = manager.task_index
        missing = reachable(names, index) - set(index)
        wanted = {
            folder for name in missing for folder in _builtin_folders().get(name, ())
        }
        if wanted <= folders:
            return manager
        folders |= wanted


def _use_local_data(names: list[str], index: Mapping[str, Any]) -> None:
    """Let lm-eval's own tasks read what lies in the present folder for them."""
    here = Path.cwd()
    for name in reachable(names, index):
        entry = index.get(name)
        if entry and entry.yaml_path and not entry.yaml_path.is_relative_to(here):
            use_local_data(entry, here)


def reachable(names: Iterable[str], index: Mapping[str, Any]) -> set[str]:
    """Return names, and the names of all members of the groups among them."""
    reached: set[str] = set()
    rest = list(names)
    while rest:
        name = rest.pop()
        if name not in reached:
            reached.add(name)
            rest += _members(index.get(name))
    return reached


def _members(entry: Any) -> list[str]:
    """Return the names of a group's or a tag's members; a task has none."""
    if not entry:
        return []
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    members = (entry.cfg or {}).get("task")
    if not isinstance(members, list):
        return []
    return [_name_of(member) for member in members]


def _name_of(member: str | Mapping[str, Any]) -> str:
    if isinstance(member, str):
        return member
    return str(member.get("group") or member.get("task"))


@functools.cache
def _builtin_folders() -> dict[str, set[str]]:
    """Return {name: folders whose YAML says it} for lm-eval's own tasks; reading takes 1 s, its full index 16 s."""
    import lm_eval.tasks

    folders: dict[str, set[str]] = {}
    for folder, _, files in os.walk(Path(lm_eval.tasks.__file__).parent):
        for file in files:
            if not file.endswith("yaml"):
                continue
            text = Path(folder, file).read_text(encoding="utf-8", errors="replace")
            for name in NAMED.findall(text):
                folders.setdefault(name, set()).add(folder)
    return folders
