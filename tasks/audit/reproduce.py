"""Make a registered version again from its record: its commit, its data, its parameters. Then compare.

The commit is checked out into a temporary worktree, and runs there with the packages that are installed here. Data are
found by their digest: in DVC's cache, on its remote, or made again by the stages of that commit.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from elder import params
from elder.errors import UserError
from elder.files import check_output
from elder.process import CPU_SETTINGS
from elder.progress import say
from elder.record import plain
from elder.settings import ELDER_SET, machine_overrides, params_of_record
from tasks.audit.evidence import Broken, Unknown, gather
from tasks.audit.record import find_data
from tasks.audit.store import files
from tasks.data import DATA, run_dvc
from tasks.provenance.lineage import git, hardware, has_commit
from tasks.store.models import local_model

# Relative difference of a perplexity: rounding to text where all else is the same; other processors and versions add up
# roundings in another order, and training passes that on.
SAME, ELSEWHERE = 1e-6, 2e-2
MAKE_DATA = """
import sys
from pathlib import Path
from elder.settings import load_params
from tasks.data import reproduce
reproduce(load_params(Path(sys.argv[1])), Path.cwd())
"""
Record = dict[str, Any]


def reproduce(
    settings: params.Params, root: Path, name: str, output: Path | None = None
) -> dict[str, Any]:
    """Make a registered version again, and compare layers, weights and perplexities with its record.

    Args:
        settings: registry and store.
        root: the project's folder, a git repository with DVC.
        name: ``NAME@ALIAS`` or ``NAME/VERSION``.
        output: new folder that keeps the model; None keeps nothing.

    Returns:
        ``same_layers``, ``same_weights``, ``metrics`` {domain: ``recorded``, ``found``, ``tolerance``, ``within``},
        ``same_machine``, ``code``, ``data`` {file: where it came from}, ``output``, ``notes``, and ``ok``: everything
        that should hold does, which is the weights only where machine and packages are the same.

    Raises:
        UserError: there is no such version, its stored bytes are not what they were, or something that it was made from
            cannot be had any more.
    """
    if output is not None:
        check_output(output)
    with tempfile.TemporaryDirectory(prefix="elder-reproduce-") as made:
        place = Path(made)
        seen = gather(settings, root, name, None, place / "stored")
        try:
            files(seen)
            record = plain(seen.record)
        except (Broken, Unknown) as error:
            raise UserError(
                f"{name} is not what it was, so its record cannot be followed: {error}"
            ) from None
        # whether code that comes with a model is run is for the caller to say, not for a record
        record["lineage"]["params"]["model"]["trust_remote_code"] = (
            settings.model.trust_remote_code
        )
        with code_of(root, record["lineage"], place / "code") as (code, notes):
            data = bring_data(root, code, record, place / "data")
            model = place / "model"
            dense = find_dense(settings, root, code, record)
            tree = recorded_params(root, code, record)
            path = write_params(tree, record, place, dense)
            again = _elder(
                code,
                record,
                "compress",
                dense,
                "--params",
                path,
                "--output",
                model,
                *_blocks(place),
            )
            found = {
                domain: _perplexity(code, record, model, path, place, domain)
                for domain in _domains(record)
            }
        result = compare(record, again, found)
        result["notes"] += notes
        if output is not None:
            shutil.copytree(model, output, dirs_exist_ok=True)
    told = {
        "code": "the present code"
        if code == root
        else f"commit {record['lineage']['git_commit']}"
    }
    kept = str(output) if output is not None else None
    return (
        {"name": seen.name, "version": seen.version}
        | result
        | told
        | {"data": data, "output": kept}
    )


def compare(record: Record, again: Record, found: dict[str, float]) -> dict[str, Any]:
    """Compare what was made again with the record; see `reproduce`.

    Args:
        record: of the run.
        again: the record in elder.json of the model that was made again.
        found: its perplexities.
    """
    differences = _differences(record["lineage"], again["lineage"])
    tolerance = ELSEWHERE if differences else SAME
    metrics = {}
    for domain, told in _domains(record).items():
        near = math.isclose(found[domain], told, rel_tol=tolerance)
        metrics[domain] = {
            "recorded": told,
            "found": found[domain],
            "tolerance": tolerance,
            "within": near,
        }
    layers, weights = again["removed"] == record["removed"], again["sha256"] == record["sha256"]
    return {
        "ok": layers
        and all(one["within"] for one in metrics.values())
        and (weights or bool(differences)),
        "same_layers": layers,
        "same_weights": weights,
        "same_machine": not differences,
        "metrics": metrics,
        "notes": [f"not as in the run: {difference}" for difference in differences],
    }


@contextmanager
def code_of(root: Path, lineage: Record, place: Path) -> Iterator[tuple[Path, list[str]]]:
    """Give a folder with the code of a run, and notes on how far it is that code.

    It is a worktree of the recorded commit, taken away at the end; or the project's folder as it is, where no commit
    was recorded or none is known here.
    """
    commit = lineage.get("git_commit")
    git(root, "worktree", "prune")
    if (
        not has_commit(root, commit)
        or git(root, "worktree", "add", "--detach", str(place), commit) is None
    ):
        why = (
            f"commit {commit} is not known here"
            if commit
            else "the run was not started in a git repository"
        )
        yield root, [f"{why}: the present code was run instead"]
        return
    try:
        clean = lineage.get("git_clean")
        yield (
            place,
            []
            if clean
            else ["the run had changes that were not committed: its commit alone was run"],
        )
    finally:
        git(root, "worktree", "remove", "--force", str(place))


def bring_data(root: Path, code: Path, record: Record, target: Path) -> dict[str, str]:
    """Copy the run's blocks and texts, found by their digest, into a new folder; returns {file: where it came from}.

    Raises:
        UserError: if a file with the recorded digest cannot be had.
    """
    wanted = {name: record["lineage"]["data"][name] for name in DATA}
    told: dict[str, str] = {}
    target.mkdir(parents=True)
    for where, look in (
        ("build/data or DVC's cache", _here),
        ("DVC's remote", _pulled),
        ("made again", _made),
    ):
        lacking = {name: md5 for name, md5 in wanted.items() if name not in told}
        for name, path in look(root, code, record, lacking).items() if lacking else ():
            shutil.copyfile(path, target / name)
            told[name] = where
    for name in wanted:
        if name not in told:
            raise UserError(
                f"there is no {name} with md5 {wanted[name]}, and making it again gives another; dvc pull"
            )
    return told


def find_dense(settings: params.Params, root: Path, code: Path, record: Record) -> str:
    """Return a run's dense model: its folder in the commit, or else in the project, or what its name means here."""
    name = record["model"]["name"]
    for base in (code, root):
        if (base / name / "config.json").is_file():
            return str(base / name)
    return local_model(name, settings)


def write_params(tree: dict[str, Any], record: Record, place: Path, model: str) -> Path:
    """Write the run's parameters with the places that model and texts have here; returns their path."""
    tree["model"]["name"] = model
    tree["model"]["revision"] = record["model"].get("revision")
    tree["evaluate"] |= {
        domain: str(place / "data" / f"{domain}.txt")
        for domain in ("in_domain", "out_of_domain")
    }
    path = place / "params.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def recorded_params(root: Path, code: Path, record: Record) -> dict[str, Any]:
    """Return the run's parameters in the shape that a folder of code reads: its own commit's, or the present one."""
    tree = json.loads(json.dumps(record["lineage"]["params"]))
    return params_of_record(tree).model_dump(mode="json") if code == root else tree


def _perplexity(
    code: Path, record: Record, model: Path, path: Path, place: Path, domain: str
) -> float:
    """Measure the new model's perplexity on a text of the run, under the run's protocol."""
    asked = [
        record["lineage"]["params"][part]["seq_len"] for part in ("evaluate", "calibration")
    ]
    length = [
        part for tokens in asked if tokens != "auto" for part in ("--seq-len", str(tokens))
    ][:2]
    text = place / "data" / f"{domain}.txt"
    return _elder(code, record, "evaluate", model, "--params", path, "--text", text, *length)[
        "perplexity"
    ]


def _elder(code: Path, record: Record, *arguments: str | Path) -> Record:
    """Run a command of the library in a folder of code; returns its JSON."""
    return json.loads(_run(code, record, "-m", "elder", *arguments, "--json"))


def _run(code: Path, record: Record, *arguments: str | Path) -> str:
    """Run Python in a folder of code, with as many threads as the run had: their number bears on the last bits.

    What ``ELDER_SET`` says of this machine's services holds; what it says of numbers does not.
    """
    own = {
        "OMP_NUM_THREADS": str(record["lineage"]["threads"]),
        ELDER_SET: " ".join(machine_overrides()),
        "PYTHONPATH": str(code),
    }
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=code,
        env=CPU_SETTINGS | os.environ | own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        what = " ".join(map(str, arguments[:3])) if arguments[0] == "-m" else "making the data"
        raise UserError(
            f"{what} ended with status {done.returncode} in the code of the run; why stands above"
        )
    return done.stdout


def _here(root: Path, _: Path, __: Record, lacking: dict[str, str]) -> dict[str, Path]:
    """Return the files that lie below a folder of the project, as DVC left them or in its cache."""
    found = {name: find_data(root, name, md5) for name, md5 in lacking.items()}
    return {name: path for name, path in found.items() if path is not None}


def _pulled(root: Path, code: Path, record: Record, lacking: dict[str, str]) -> dict[str, Path]:
    """Return the files that DVC's remote has, brought into DVC's cache; none where there is no remote."""
    outs = {
        Path(out["path"]).name: out
        for stage in record["data"]["stages"].values()
        for out in stage["outs"]
    }
    wanted = [
        {"path": name, "md5": md5, "size": outs[name]["size"], "hash": "md5"}
        for name, md5 in lacking.items()
    ]
    (root / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root / "build") as folder:
        pointer = Path(folder) / "data.dvc"
        pointer.write_text(yaml.safe_dump({"outs": wanted}), encoding="utf-8")
        with suppress(RuntimeError, UserError):
            run_dvc(["fetch", str(pointer)], root)
    return _here(root, code, record, lacking)


def _made(root: Path, code: Path, record: Record, lacking: dict[str, str]) -> dict[str, Path]:
    """Return the files that the stages of the run's own code make again."""
    say(f"making again with DVC: {', '.join(lacking)}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        tree = recorded_params(root, code, record)
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        _run(code, record, "-c", MAKE_DATA, path)
    return _here(code, code, record, lacking)


def _blocks(place: Path) -> list[str | Path]:
    return ["--calibration", place / "data" / "calibration.safetensors"]


def _domains(record: Record) -> dict[str, float]:
    """Return the candidate's perplexities in a record."""
    row = next(row for row in record["rows"] if row["kind"] == "candidate")
    return {domain: found["perplexity"] for domain, found in row["perplexity"].items()}


def _differences(then: Record, now: Record) -> list[str]:
    """Say what the machine and the packages have that the run's had not, and could bear on the last bits."""
    pairs = [
        (key, then.get(key), now.get(key))
        for key in ("device", "threads", "platform", "python")
    ]
    pairs += [
        (name, then["packages"].get(name), now["packages"].get(name))
        for name in ("torch", "transformers")
    ]
    pairs.append(("cpu", (then.get("hardware") or {}).get("cpu"), hardware()["cpu"]))
    return [f"{what} {after}, was {before}" for what, before, after in pairs if before != after]
