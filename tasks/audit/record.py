"""What an audit looks at in the record: whether it follows from its own numbers, and from what is here."""

import hashlib
import math
import re
from pathlib import Path

from elder import params
from elder.errors import UserError
from elder.evaluation.gate import differences, judge_again
from elder.names import path_fault, shown
from elder.record import Perplexity
from elder.settings import params_of_record
from tasks.audit.evidence import Broken, Evidence, Unknown
from tasks.audit.mlflow import some
from tasks.audit.store import refuse_foreign_code
from tasks.provenance.lineage import git, has_commit, why_no_commit

# Relative, of a perplexity measured again: other processors round in other ways.
TOLERANCE = 1e-3
MD5 = re.compile("[0-9a-f]{32}")


def gate(evidence: Evidence) -> str:
    """Judge the record's numbers again by the record's own rules."""
    record = evidence.record
    judged = judge_again(record)
    faults = differences(record.gate, judged)
    if judged.refused:
        faults.append("it refuses this model, which is registered all the same")
    if faults:
        raise Broken(
            f"the verdict does not follow from the numbers: {'; '.join(faults)}"
        )
    verdict = "passed" if judged.passed else "refused"
    return f"{len(judged.rules)} rules judged again: {verdict}, mode {judged.mode}"


def source_model(evidence: Evidence) -> str:
    """Compute the digest of the dense model's weights, where its folder or GGUF file is here."""
    from elder.model.load import load_model, weights_digest

    model = evidence.record.model
    place = evidence.root / model.name
    if not place.exists():
        pinned = f", pinned by revision {model.revision}" if model.revision else ""
        raise Unknown(f"the dense model {model.name!r} is not here{pinned}")
    recorded = params.Model.model_validate(evidence.record.lineage.params["model"])
    digest = weights_digest(load_model(_own(recorded, place)).model)
    if digest != model.digest:
        told = f"{model.digest[:12]}..." if model.digest else "none"
        raise Broken(
            f"{model.name} has weights {digest[:12]}..., the record says {told}"
        )
    return f"{model.name} has the weights that the record names, {digest[:12]}..."


def data(evidence: Evidence) -> str:
    """Compute the digests of the calibration and evaluation data, where they are here."""
    record = evidence.record
    made = {}
    for stage in record.data.stages.values():
        for out in stage["outs"]:
            made[Path(out["path"]).name] = out["md5"]
    told = record.lineage.data
    odd = [name for name, md5 in told.items() if made.get(Path(name).name) != md5]
    if odd:
        raise Broken(
            f"the digests of {some(odd)} are not those of the DVC stages that made them"
        )
    missing = [
        name for name, md5 in told.items() if not find_data(evidence.root, name, md5)
    ]
    if missing:
        raise Unknown(
            f"{some(missing)} not found by digest in build/data or DVC's cache; dvc pull may bring them"
        )
    return f"{len(told)} files have the md5 that the record names"


def find_data(root: Path, name: str, md5: str) -> Path | None:
    """Return the path of a data file with this very content: the newest DVC made, or one in its cache.

    Args:
        root: the project's folder.
        name: of the file below build/data.
        md5: as in dvc.lock.

    Raises:
        UserError: name or digest are such as could lead elsewhere.
    """
    fault = path_fault(name)
    if fault:
        raise UserError(f"the record names the data file {shown(name)}, which {fault}")
    if not MD5.fullmatch(md5):
        raise UserError(f"the record gives {shown(md5)} as the md5 of {name}")
    newest = root / "build" / "data" / name
    cached = root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    for path in (newest, cached):
        if _md5(path) == md5:
            return path
    return None


def commit(evidence: Evidence) -> str:
    """Look the code's commit up."""
    root, lineage = evidence.root, evidence.record.lineage
    wanted = lineage.git_commit
    if wanted is None:
        raise Unknown(
            "the record names no commit: git named none where the run was started"
        )
    if git(root, "rev-parse", "HEAD") is None:
        raise Unknown(
            f"commit {wanted[:12]} cannot be looked up here: {why_no_commit(root)}"
        )
    if not has_commit(root, wanted):
        if git(root, "rev-parse", "--is-shallow-repository") == "true":
            raise Unknown(
                f"this clone is shallow and lacks commit {wanted[:12]}; git fetch --unshallow brings it"
            )
        raise Broken(f"commit {wanted} is not known to this repository")
    changed = (
        "" if lineage.git_clean else "; the run had changes that were not committed"
    )
    return f"commit {wanted[:12]} is known{changed}"


def measured_again(evidence: Evidence) -> str:
    """Measure the perplexities again, as far as their texts are here."""
    from elder.evaluation.evaluate import evaluation_length
    from elder.evaluation.perplexity import perplexity_of_text
    from elder.model.forward import seed_everything
    from elder.model.load import load_model

    record = evidence.record
    recorded = params_of_record(record.lineage.params)
    asked = recorded.evaluate
    seed_everything(recorded.calibration.seed)
    own = _own(recorded.model, evidence.content())
    loaded = load_model(own, bos=recorded.calibration.bos)
    length = evaluation_length(recorded, loaded)
    sentences = []
    for domain, told in record.candidate.perplexity.items():
        name = f"{domain}.txt"
        text = find_data(evidence.root, name, record.lineage.data[name])
        if text is None:
            raise Unknown(f"the text {name} was not found by its digest")
        again = perplexity_of_text(loaded, text, length, asked.max_tokens, asked.batch)
        before, now = _number(told), _number(again)
        if not math.isclose(now, before, rel_tol=TOLERANCE):
            raise Broken(
                f"perplexity {domain} is {now:.4f}, the record says {before:.4f}"
            )
        sentences.append(f"{domain} {now:.4f}")
    return f"measured again: {', '.join(sentences)}"


def _number(measured: Perplexity) -> float:
    """Return a perplexity as a float; JSON has no infinity, so that a record leaves such a one out."""
    return math.inf if measured.perplexity is None else float(measured.perplexity)


def _own(recorded: params.Model, folder: Path) -> params.Model:
    """Return how to load a folder; no code that comes with a model is run, whatever record or parameters say."""
    if (folder / "config.json").is_file():
        refuse_foreign_code(folder)
    own = {"name": str(folder), "revision": None, "trust_remote_code": False}
    return recorded.model_copy(update=own)


def _md5(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()
