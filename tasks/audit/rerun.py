"""The code of an earlier run, what it is started with, and the data that it reads, found again by their digests."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from elder.errors import UserError
from elder.names import path_fault, shown
from elder.params import Params
from elder.process import CPU_SETTINGS
from elder.progress import say
from elder.record import Json, Lineage, Record
from elder.settings import ELDER_SET, machine_overrides, params_of_record
from tasks.audit.record import find_data
from tasks.data import DATA, run_dvc
from tasks.provenance.lineage import (
    git,
    has_commit,
    refused_repository,
    why_no_commit,
)
from tasks.store.models import STORED

MAKE_DATA = """
import sys
from pathlib import Path
from elder.settings import load_params
from tasks.data import reproduce
reproduce(load_params(Path(sys.argv[1])), Path.cwd())
"""
# parameters that name a file or a folder
PLACES = (
    ("model", "name"),
    ("calibration", "source"),
    ("evaluate", "in_domain"),
    ("evaluate", "out_of_domain"),
)
Digests = dict[str, str]  # md5 by name of the file
Paths = dict[str, Path]  # by name of the file


@dataclass(frozen=True)
class Rerun:
    """A recorded run and the code that makes it again.

    Attributes:
        record: of the run.
        root: the project's folder.
        code: folder of the code: a worktree of the run's commit, or ``root``.
        settings: of whoever makes it again: registry and store, and whether code that comes with a model may run, which
            is not for a record to say.
    """

    record: Record
    root: Path
    code: Path
    settings: Params

    def params(self) -> dict[str, Json]:
        """Return the run's parameters as the code reads them: its own commit as they stand, the present code anew."""
        tree = deepcopy(self.record.lineage.params)
        self._refuse_elsewhere(tree)
        if self.code == self.root:
            tree = params_of_record(tree).model_dump(mode="json")
        tree["model"]["trust_remote_code"] = self.settings.model.trust_remote_code
        return tree

    def _refuse_elsewhere(self, tree: dict[str, Json]) -> None:
        """Refuse a record that names a file of this machine outside the project, unless the parameters of here do.

        Raises:
            UserError: naming the parameter.
        """
        named = [(PLACES[0], self.record.model.name)]
        for section, key in PLACES:
            if key in tree.get(section, {}):  # older records lack some
                named.append(((section, key), str(tree[section][key])))
        for (section, key), name in named:
            own = getattr(getattr(self.settings, section), key)
            if name == own or name.startswith(STORED):
                continue
            fault = path_fault(str(PurePosixPath(name)))
            if fault or name.startswith(("~", "-")):
                raise UserError(
                    f"the record names {shown(name)} as {section}.{key}, which leads out of the project; if that is"
                    f" meant, give the same here with --set {section}.{key}=..."
                )

    def elder(self, *arguments: str | Path) -> Json:
        """Run a command of the library; returns its JSON."""
        return json.loads(self.python("-m", "elder", *arguments, "--json"))

    def python(self, *arguments: str | Path) -> str:
        """Run Python in the code, with as many threads as the run had: their number bears on the last bits.

        What ``ELDER_SET`` says of this machine's services holds; what it says of numbers does not.

        Raises:
            UserError: if it fails.
        """
        own = {ELDER_SET: " ".join(machine_overrides()), "PYTHONPATH": str(self.code)}
        if self.record.lineage.threads is not None:
            own["OMP_NUM_THREADS"] = str(self.record.lineage.threads)
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.code,
            env=CPU_SETTINGS | os.environ | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            command = " ".join(map(str, arguments[:3]))
            title = command if arguments[0] == "-m" else "making the data"
            raise UserError(
                f"{title} ended with status {done.returncode} in the code of the run; why stands above"
            )
        return done.stdout


@contextmanager
def code_of(
    root: Path, lineage: Lineage, place: Path
) -> Iterator[tuple[Path, list[str]]]:
    """Give a folder with the code of a run, and notes on how far it is that code.

    It is a worktree of the recorded commit, taken away at the end; or the project's folder as it is, where no commit
    was recorded or none is known here.
    """
    commit = lineage.git_commit
    git(root, "worktree", "prune")
    if not (commit and has_commit(root, commit) and _check_out(root, commit, place)):
        why = "the record names no commit"
        if commit:
            why = f"commit {commit} is not known here"
            if refused_repository(root):
                why = why_no_commit(root)
        yield root, [f"{why}: the present code was run instead"]
        return
    notes = []
    if not lineage.git_clean:
        notes.append(
            "the run had changes that were not committed: its commit alone was run"
        )
    try:
        yield place, notes
    finally:
        git(root, "worktree", "remove", "--force", str(place))


def _check_out(root: Path, commit: str, place: Path) -> bool:
    return git(root, "worktree", "add", "--detach", str(place), commit) is not None


def bring_data(rerun: Rerun, target: Path) -> dict[str, str]:
    """Copy the run's blocks and texts, found by their digest, into a new folder; returns {file: where it came from}.

    Raises:
        UserError: if a file with the recorded digest cannot be had.
    """
    recorded = rerun.record.lineage.data
    lacking = {name: recorded[name] for name in DATA}
    sources: dict[str, Callable[[Rerun, Digests], Paths]] = {
        "build/data or DVC's cache": _here,
        "DVC's remote": _pulled,
        "made again": _made,
    }
    told: dict[str, str] = {}
    target.mkdir(parents=True)
    for title, find in sources.items():
        for name, path in find(rerun, lacking).items() if lacking else ():
            shutil.copyfile(path, target / name)
            told[name] = title
            del lacking[name]
    for name, md5 in lacking.items():
        raise UserError(
            f"there is no {name} with md5 {md5}, and making it again gives another; dvc pull"
        )
    return told


def _here(rerun: Rerun, lacking: Digests) -> Paths:
    """Return the files that lie below the project's folder, as DVC left them or in its cache."""
    return _below(rerun.root, lacking)


def _pulled(rerun: Rerun, lacking: Digests) -> Paths:
    """Return the files that DVC's remote has, brought into DVC's cache; none where there is no remote."""
    sizes = {}
    for stage in rerun.record.data.stages.values():
        for out in stage["outs"]:
            sizes[Path(out["path"]).name] = out["size"]
    outs = []
    for name, md5 in lacking.items():
        outs.append({"path": name, "md5": md5, "size": sizes[name], "hash": "md5"})
    build = rerun.root / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as folder:
        pointer = Path(folder) / "data.dvc"
        pointer.write_text(yaml.safe_dump({"outs": outs}), encoding="utf-8")
        with suppress(RuntimeError, UserError):
            run_dvc(["fetch", str(pointer)], rerun.root)
    return _below(rerun.root, lacking)


def _made(rerun: Rerun, lacking: Digests) -> Paths:
    """Return the files that the stages of the run's own code make again."""
    say(f"making again with DVC: {', '.join(lacking)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(
            yaml.safe_dump(rerun.params(), sort_keys=False), encoding="utf-8"
        )
        rerun.python("-c", MAKE_DATA, path)
    return _below(rerun.code, lacking)


def _below(root: Path, lacking: Digests) -> Paths:
    paths = {name: find_data(root, name, md5) for name, md5 in lacking.items()}
    return {name: path for name, path in paths.items() if path is not None}
