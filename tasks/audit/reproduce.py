"""Make a registered version again from its record: its commit, its data, its parameters. Then compare.

The commit is checked out into a temporary worktree, and runs there with the packages that are installed here. Data are
found by their digest: in DVC's cache, on its remote, or made again by the stages of that commit.
"""

import math
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from elder import params
from elder.errors import UserError
from elder.files import check_output, whole_folder
from elder.locks import hold
from elder.names import gguf_file, shown
from elder.record import Json, Lineage, Number, Record
from tasks.audit.evidence import Broken, Evidence, gather
from tasks.audit.rerun import Rerun, bring_data, code_of
from tasks.audit.run import examine, waivers
from tasks.audit.store import STORE_CHECKS
from tasks.audit.trust import name as registered_name
from tasks.audit.trust import registration
from tasks.data import DATA
from tasks.provenance.lineage import hardware
from tasks.provenance.trust import trust_of
from tasks.store.models import local_model

# Relative difference of a perplexity: rounding to text where all else is the same; other processors and versions add up
# roundings in another order, and training passes that on.
SAME, ELSEWHERE = 1e-6, 2e-2
# checks of the audit that come before a record is followed
BEFORE = STORE_CHECKS | {"registration": registration, "name": registered_name}


class Made(BaseModel):
    """What of the model that was made again is compared; by the record in its elder.json."""

    model_config = ConfigDict(frozen=True)
    removed: list[int]
    sha256: str | None = None
    lineage: Lineage


class Metric(BaseModel):
    """A perplexity then and now."""

    model_config = ConfigDict(frozen=True)
    recorded: Number | None
    found: Number | None
    tolerance: float
    within: bool


class Comparison(BaseModel):
    """How the model that was made again stands to its record.

    Attributes:
        ok: everything that should hold does, which is the weights only where machine and packages are the same.
        same_layers: the same layers went, in the same order.
        same_weights: all weights are the same.
        same_machine: machine and packages are, as far as they bear on the last bits.
        metrics: by domain.
        notes: what is not as it was in the run.
    """

    model_config = ConfigDict(frozen=True)
    ok: bool
    same_layers: bool
    same_weights: bool
    same_machine: bool
    metrics: dict[str, Metric]
    notes: list[str]


class Reproduction(BaseModel):
    """A version, and what became of it when it was made again.

    Attributes:
        name: registered model.
        version: its number.
        comparison: with the record.
        code: whose code was run.
        data: where each file came from.
        output: folder that keeps the model, or None.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    version: str
    comparison: Comparison
    code: str
    data: dict[str, str]
    output: str | None

    def as_json(self) -> dict[str, Json]:
        """Return all as one flat JSON object."""
        tree = self.model_dump(mode="json")
        head = {key: tree.pop(key) for key in ("name", "version")}
        return head | tree.pop("comparison") | tree


def make_again(
    settings: params.Params,
    root: Path,
    name: str,
    output: Path | None = None,
    waive: Collection[str] = (),
) -> Reproduction:
    """Make a registered version again, and compare layers, weights and perplexities with its record.

    Args:
        settings: registry and store, and whom to believe.
        root: the project's folder, a git repository with DVC.
        name: ``NAME@ALIAS`` or ``NAME/VERSION``.
        output: new folder that keeps the model; None keeps nothing.
        waive: names of checks that may fail.

    Raises:
        UserError: there is no such version, it is not what was signed under this name and number, or something that it
            was made from cannot be had any more.
    """
    waived = waivers(waive)
    with (
        _claimed(output),
        tempfile.TemporaryDirectory(prefix="elder-reproduce-") as made,
    ):
        place = Path(made)
        trust = trust_of(settings.signing, root)
        evidence = gather(settings, root, name, trust, place / "stored", waived)
        record = _whole_record(evidence, name)
        with code_of(root, record.lineage, place / "code") as (code, notes):
            rerun = Rerun(record, root, code, settings)
            data = bring_data(rerun, place / "data")
            again, perplexities = _make(rerun, place)
        comparison = compare_with_record(record, again, perplexities)
        if output is not None:
            _keep(place / "model", output)
    whose = (
        "the present code" if code == root else f"commit {record.lineage.git_commit}"
    )
    return Reproduction(
        name=evidence.name,
        version=evidence.version,
        comparison=comparison.model_copy(update={"notes": comparison.notes + notes}),
        code=whose,
        data=data,
        output=None if output is None else str(output),
    )


@contextmanager
def _claimed(output: Path | None) -> Iterator[None]:
    """Hold the folder that is to keep the model, from before it is made.

    Raises:
        UserError: it holds something, cannot be made, or another process is to fill it.
    """
    if output is None:
        yield
        return
    check_output(output)
    lock = output.absolute().with_name(f".{output.name}.lock")
    refusal = f"another process makes a model again for {str(output)!r}: wait for its end, or name another output"
    with hold(lock, refusal):
        check_output(output)  # another process may have come to its end meanwhile
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _keep(model: Path, output: Path) -> None:
    """Copy a model folder whole or not at all."""
    check_output(output)  # others than this command may have written there
    with whole_folder(output) as partial:
        shutil.copytree(model, partial, dirs_exist_ok=True)


def compare_with_record(
    record: Record, again: Made, perplexities: dict[str, Number | None]
) -> Comparison:
    """Compare what was made again with the record.

    Args:
        record: of the run.
        again: of the model that was made again.
        perplexities: its perplexities by domain.
    """
    differences = _differences(record.lineage, again.lineage)
    tolerance = ELSEWHERE if differences else SAME
    metrics = {}
    for domain, measured in record.candidate.perplexity.items():
        then, now = measured.perplexity, perplexities[domain]
        near = then == now  # None, where it was not finite
        if then is not None and now is not None:
            near = math.isclose(now, then, rel_tol=tolerance)
        metrics[domain] = Metric(
            recorded=then, found=now, tolerance=tolerance, within=near
        )
    same_layers = again.removed == record.removed
    same_weights = again.sha256 == record.sha256
    near_enough = all(metric.within for metric in metrics.values())
    return Comparison(
        ok=same_layers and near_enough and (same_weights or bool(differences)),
        same_layers=same_layers,
        same_weights=same_weights,
        same_machine=not differences,
        metrics=metrics,
        notes=[f"not as in the run: {difference}" for difference in differences],
    )


def _whole_record(evidence: Evidence, name: str) -> Record:
    """Return the record of a version that is what was signed under its name and number."""
    for title, check in BEFORE.items():
        finding = examine(title, check, evidence)
        if not (finding.ok or finding.waived):
            raise UserError(
                f"{name} is not what it was, so its record cannot be followed: {title}: {finding.detail}"
            )
    try:
        return evidence.record
    except Broken as error:
        raise UserError(f"{name}: {error}") from None


def _make(rerun: Rerun, place: Path) -> tuple[Made, dict[str, Number | None]]:
    """Make the model in ``place``/model and measure its perplexities on the texts of the run, under its protocol."""
    tree = _params_here(rerun, place)
    path, model, data = place / "params.yaml", place / "model", place / "data"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    blocks = data / "calibration.safetensors"
    dense = tree["model"]["name"]
    asked = ("--params", path, "--output", model, "--calibration", blocks)
    again = Made.model_validate(rerun.elder("compress", dense, *asked))
    length = _block_length(tree)
    perplexities = {}
    for domain in rerun.record.candidate.perplexity:
        if f"{domain}.txt" not in DATA:
            raise UserError(
                f"the record names {shown(domain)}, which is no domain: it was edited"
            )
        text = ("--params", path, "--text", data / f"{domain}.txt")
        perplexities[domain] = rerun.elder("evaluate", model, *text, *length)[
            "perplexity"
        ]
    return again, perplexities


def _params_here(rerun: Rerun, place: Path) -> dict[str, Json]:
    """Return the run's parameters with the places that model and texts have here.

    The model's folder or file is that of the commit, or else of the project; other names mean what they meant to the
    run.
    """
    tree, model = rerun.params(), rerun.record.model
    tree["model"]["name"] = _dense_place(rerun) or local_model(
        model.name, rerun.settings
    )
    tree["model"]["revision"] = model.revision
    for domain in ("in_domain", "out_of_domain"):
        tree["evaluate"][domain] = str(place / "data" / f"{domain}.txt")
    return tree


def _dense_place(rerun: Rerun) -> str | None:
    for base in (rerun.code, rerun.root):
        place = base / rerun.record.model.name
        file = gguf_file(str(place))
        if (place / "config.json").is_file() or (file and file.is_file()):
            return str(place)
    return None


def _block_length(tree: dict[str, Json]) -> list[str]:
    """Return the option for the tokens in a block of the evaluation, where the run's parameters say how many."""
    for section in ("evaluate", "calibration"):
        tokens = tree[section]["seq_len"]
        if tokens != "auto":
            return ["--seq-len", str(tokens)]
    return []


def _differences(then: Lineage, now: Lineage) -> list[str]:
    """Say what the machine and the packages have that the run's had not, and could bear on the last bits."""
    pairs: dict[str, tuple[Json, Json]] = {
        "device": (then.device, now.device),
        "threads": (then.threads, now.threads),
        "platform": (then.platform, now.platform),
        "python": (then.python, now.python),
    }
    for name in ("torch", "transformers"):
        pairs[name] = (then.packages.get(name), now.packages.get(name))
    pairs["cpu"] = (then.hardware.get("cpu"), hardware()["cpu"])
    return [
        f"{what} {after}, was {before}"
        for what, (before, after) in pairs.items()
        if before != after
    ]
