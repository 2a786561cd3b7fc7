"""Run the pipeline of dvc.yaml for the parameters of one run, and say where the data lies and what its digests are.

DVC reads params.yaml. A run whose parameters differ from it in what the stages use gets a pipeline of its own below
build/pipelines/, the same stages with its own parameters, so that nobody's params.yaml is rewritten.
"""

import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from prefect import task

from elder.errors import UserError
from elder.files import read_json
from elder.fingerprint import Fingerprint
from elder.locks import FOR_EVER, hold
from elder.params import Params
from elder.progress import say
from elder.record import DataFacts, Json
from elder.secrecy import hide_given_secrets, without_secrets
from tasks.run.run import Run

PLACE = "build/data"
# what the stages of a run read
DATA = ("calibration.safetensors", "in_domain.txt", "out_of_domain.txt")


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        facts: the source as it was found, and the stages as dvc.lock tells how they were run.
        digests: {file: md5 in dvc.lock}.
        lock_sha256: of dvc.lock.
    """

    facts: DataFacts
    digests: dict[str, str]
    lock_sha256: str


@task(name="prepare data")
def prepare_data(run: Run) -> Data:
    """Bring calibration blocks and evaluation texts up to date, and keep a copy for one run; see `reproduce`."""
    made = reproduce(run.pinned, run.root, run.data)
    for found in (made["source"], *made["source"].get("evaluation", {}).values()):
        if found.get("nulls"):
            say(
                f"{found['source']}: {found['nulls']} of {found['rows']} rows are null and left out"
            )
    facts = DataFacts(source=made["source"], stages=made["stages"])
    return Data(facts, made["digests"], made["dvc_lock_sha256"])


def reproduce(params: Params, root: Path, keep: Path | None = None) -> dict[str, Json]:
    """Bring calibration blocks and evaluation texts up to date with ``dvc repro``; push them, where there is a remote.

    Args:
        params: the parameters of the run; paths in them are relative to ``root``.
        root: folder of dvc.yaml.
        keep: folder to copy the data to, since another run may bring them up to date again while this one reads them.

    Returns:
        ``folder`` where DVC made the data, ``digests`` {file: md5 in dvc.lock}, ``source`` of the calibration text as
        it was found, ``stages`` as dvc.lock tells how they were run, ``dvc_lock`` and ``dvc_lock_sha256``.

    Raises:
        UserError: if a stage refused its input.
        RuntimeError: if DVC failed otherwise.
    """
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    lock = root / ".dvc" / "tmp" / "elder.lock"
    # two at once can fail on DVC's own lock
    with hold(lock, "DVC is at work", FOR_EVER):
        pipeline, place = Path("dvc.yaml"), PLACE
        wanted = used_params(params, stages)
        if wanted != stated_params(root / "params.yaml", wanted):
            folder = Path("build/pipelines") / Fingerprint(wanted).short
            pipeline = write_pipeline(params, stages, root, folder)
            place = f"{pipeline.parent.as_posix()}/data"
        run_dvc(["repro", pipeline.as_posix()], root)
        if remote_name(root):
            push(pipeline, root)
        told = (root / pipeline).with_name("dvc.lock")
        made = yaml.safe_load(told.read_text(encoding="utf-8"))["stages"]
        outs = [out for stage in made.values() for out in stage["outs"]]
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for name in DATA:
                shutil.copyfile(root / place / name, keep / name)
        return {
            "folder": str(root / place),
            "digests": {
                out["path"].removeprefix(f"{place}/"): out["md5"] for out in outs
            },
            "source": found_in(root / place),
            "stages": made,
            "dvc_lock": str(told),
            "dvc_lock_sha256": hashlib.sha256(told.read_bytes()).hexdigest(),
        }


def found_in(folder: Path) -> dict[str, Json]:
    """Return what the stages found of the texts: of the calibration text, and below ``evaluation`` of the others."""
    found: dict[str, Json] = read_json(folder / "source.json")
    # older code, which an audit may run, makes no such file
    more = folder / "texts.json"
    return found | ({"evaluation": read_json(more)} if more.is_file() else {})


def remote_name(root: Path) -> str | None:
    """Return the name of the project's default DVC remote, or None."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(
        [root / ".dvc" / "config", root / ".dvc" / "config.local"], encoding="utf-8"
    )
    return config.get("core", "remote", fallback=None)


def push(pipeline: Path, root: Path) -> None:
    """Send a pipeline's data to the DVC remote, so that another machine gets the same bytes by digest.

    Raises:
        UserError: if they could not be sent.
    """
    try:
        run_dvc(["push", pipeline.as_posix()], root)
    except RuntimeError:
        name = remote_name(root)
        raise UserError(
            f"the data could not be pushed to the DVC remote {name!r}: `elder doctor` says why;"
            " to go on without it: dvc remote default --unset"
        ) from None


def used_params(params: Params, stages: dict[str, Json]) -> dict[str, Json]:
    """Return {section.key: value} of all that the stages use."""
    tree = params.model_dump(mode="json")
    keys = sorted({key for stage in stages.values() for key in stage["params"]})
    return {key: tree[key.split(".")[0]][key.split(".")[1]] for key in keys}


def stated_params(path: Path, wanted: Iterable[str]) -> dict[str, Json] | None:
    """Return {section.key: value} as params.yaml has them, or None if it leaves one out, which DVC does not accept."""
    if not path.is_file():
        return None
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    stated: dict[str, Json] = {}
    for key in wanted:
        section, _, name = key.partition(".")
        try:
            stated[key] = tree[section][name]
        except (KeyError, TypeError):
            return None
    return stated


def write_pipeline(
    params: Params, stages: dict[str, Json], root: Path, folder: Path
) -> Path:
    """Write the same stages with these parameters into a folder below root; return the new dvc.yaml, relative."""
    own = folder.as_posix()
    stages = json.loads(json.dumps(stages).replace(f"{PLACE}/", f"{own}/data/"))
    for stage in stages.values():
        stage["wdir"] = "/".join([".."] * len(folder.parts))
        stage["cmd"] += f" --params {own}/params.yaml --output {own}/data"
        stage["params"] = [{f"{own}/params.yaml": stage["params"]}]
    (root / folder).mkdir(parents=True, exist_ok=True)
    given = without_secrets(params.model_dump(mode="json"))
    for name, tree in (("params.yaml", given), ("dvc.yaml", {"stages": stages})):
        text = yaml.safe_dump(tree, sort_keys=False)
        (root / folder / name).write_text(text, encoding="utf-8")
    return folder / "dvc.yaml"


def run_dvc(arguments: list[str], root: Path) -> None:
    """Run DVC with this Python first on PATH; a stage's refusal becomes a UserError."""
    path = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dvc",
            "--wait-for-lock",
            *arguments,
        ],  # held by the DVC of a run that was killed
        cwd=root,
        env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = hide_given_secrets(done.stderr)
        refusal = re.search(
            r"^error: (.*?)(?=^ERROR: |\Z)", said, re.MULTILINE | re.DOTALL
        )
        if refusal:
            raise UserError(refusal[1].strip())
        raise RuntimeError(f"dvc {' '.join(arguments)} failed:\n{said[-2000:]}")
