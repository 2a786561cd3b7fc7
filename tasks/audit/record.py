"""What an audit looks at in the record: whether the registry agrees, and whether it follows from what is here."""

import hashlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from elder import params
from elder.evaluation.gate import judge
from elder.settings import validate
from tasks.audit.evidence import Broken, Check, Evidence, Unknown
from tasks.provenance.bom import RECORD
from tasks.provenance.lineage import git, has_commit
from tasks.registry.metrics import metrics_of, params_of, tags_of
from tasks.registry.mlflow import plain_refusals

LATER = {"artifact", "model_version", "report"}  # known only after the folder was published
TOLERANCE = (
    1e-3  # relative, of a perplexity measured again: other processors round in other ways
)
LARGEST = sys.float_info.max  # what MLflow's databases make of an infinite number
MANY = 5  # names in a sentence; more are counted


def registry_record(seen: Evidence) -> str:
    """Compare the record attached to the MLflow run with the one in the store."""
    attached, stored = _attached(seen, RECORD), seen.record
    differing = [
        key
        for key in sorted((set(stored) | set(attached)) - LATER)
        if stored.get(key) != attached.get(key)
    ]
    artifact = attached.get("artifact") or {}
    if (artifact.get("url"), artifact.get("digest")) != (seen.source, seen.tags.get("digest")):
        differing.append("artifact")
    if str(attached.get("model_version")) != seen.version:
        differing.append("model_version")
    if differing:
        raise Broken(
            f"{RECORD} of the MLflow run differs from the stored one in {_some(differing)}"
        )
    return f"{RECORD} of MLflow run {seen.run.info.run_id} says the same as the stored one"


def registry_params(seen: Evidence) -> str:
    """Compare the parameters of the MLflow run with the record's."""
    return _same("parameters", params_of(seen.record), dict(seen.run.data.params))


def registry_metrics(seen: Evidence) -> str:
    """Compare every metric of the MLflow run, step by step, with the record's numbers."""
    wanted: dict[str, set[tuple[int, float]]] = {}
    for key, value, step in metrics_of(seen.record):
        wanted.setdefault(key, set()).add((step, max(-LARGEST, min(LARGEST, value))))
    found = {}
    with plain_refusals(seen.settings.registry):
        for key in seen.run.data.metrics:
            history = seen.client.get_metric_history(seen.run.info.run_id, key)
            found[key] = {(metric.step, metric.value) for metric in history}
            latest = seen.run.data.metrics[key]
            if latest not in {value for _, value in found[key]}:
                found[key].add((-1, latest))
    return _same("metrics", wanted, found)


def registry_tags(seen: Evidence) -> str:
    """Compare the tags of the version and of its run with the record; further ones, such as promotions', may be."""
    own = tags_of(seen.record) | {"run_id": seen.record["run_id"]}
    for title, tags in (("version", seen.tags), ("run", seen.run.data.tags)):
        differing = [key for key, value in own.items() if tags.get(key) != value]
        if differing:
            raise Broken(f"tags of the {title} differ from the record: {_some(differing)}")
    return f"{len(own)} tags of version and run follow from the record"


def gate(seen: Evidence) -> str:
    """Judge the record's numbers again by the record's own rules."""
    record, told = seen.record, seen.record["gate"]
    rules = params.Gate.model_validate(record["lineage"]["params"]["gate"])
    rows = {row["kind"]: row for row in record["rows"]}
    judged = judge(
        rules, rows["dense"], rows["candidate"], record["speed"], record.get("champion")
    )
    pairs = [(key, told[key], judged[key]) for key in ("mode", "passed")]
    old, new = (
        {r["rule"]: (r["value"], r["limit"], r["passed"]) for r in one["rules"]}
        for one in (told, judged)
    )
    pairs += [(f"rule {rule}", old.get(rule), new.get(rule)) for rule in old | new]
    broken = [
        f"{what} is {before}, judged again {now}"
        for what, before, now in pairs
        if before != now
    ]
    if judged["enforced"] and not judged["passed"]:
        broken.append("it refuses this model, which is registered all the same")
    if broken:
        raise Broken(f"the verdict does not follow from the numbers: {'; '.join(broken)}")
    return f"{len(new)} rules judged again: {'passed' if judged['passed'] else 'refused'}, mode {judged['mode']}"


def layer_weights(seen: Evidence) -> str:
    """Follow the selection round by round: what went must be what the scores say."""
    record, scores = seen.record, seen.record["scores"]
    gone = [layer for one in scores["rounds"] for layer in one["removed"]]
    if gone != record["removed"]:
        raise Broken(f"the rounds removed layers {gone}, the record says {record['removed']}")
    for number, one in enumerate(scores["rounds"], start=1):
        if (
            one.get("checked")
            and [min(one["checked"], key=lambda pair: pair[1])[0]] != one["removed"]
        ):
            raise Broken(
                f"round {number}: another layer than {one['removed']} was missed the least"
            )
    if record.get("weights") is None:
        return f"{len(scores['rounds'])} rounds of {scores['name']}; this method learns no layer weights"
    if _attached(seen, "layer_weights.json") != record["weights"]:
        raise Broken("layer_weights.json of the MLflow run differs from the stored record")
    return f"layer weights of {len(scores['rounds'])} rounds lead to layers {', '.join(map(str, gone))}"


def source_model(seen: Evidence) -> str:
    """Compute the digest of the dense model's weights, where its folder is here."""
    from elder.model.load import load_model, weights_digest

    told = seen.record["model"]
    folder = seen.root / told["name"]
    if not folder.is_dir():
        pinned = f", pinned by revision {told['revision']}" if told.get("revision") else ""
        raise Unknown(f"the dense model {told['name']!r} is no folder here{pinned}")
    recorded = params.Model.model_validate(seen.record["lineage"]["params"]["model"])
    found = weights_digest(load_model(_own(recorded, folder, seen)).model)
    if found != told["digest"]:
        raise Broken(
            f"{told['name']} has weights {found[:12]}..., the record says {told['digest'][:12]}..."
        )
    return f"{told['name']} has the weights that the record names, {found[:12]}..."


def data(seen: Evidence) -> str:
    """Compute the digests of the calibration and evaluation data, where they are here."""
    told = seen.record["lineage"]["data"]
    outs = [out for stage in seen.record["data"]["stages"].values() for out in stage["outs"]]
    made = {Path(out["path"]).name: out["md5"] for out in outs}
    odd = [name for name, md5 in told.items() if made.get(Path(name).name) != md5]
    if odd:
        raise Broken(
            f"the digests of {_some(odd)} are not those of the DVC stages that made them"
        )
    found = {name: find_data(seen.root, name, md5) for name, md5 in told.items()}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise Unknown(
            f"{_some(missing)} not found by digest in build/data or DVC's cache; dvc pull may bring them"
        )
    return f"{len(told)} files have the md5 that the record names"


def find_data(root: Path, name: str, md5: str) -> Path | None:
    """Return the path of a data file with this very content: the newest DVC made, or one in its cache.

    Args:
        root: the project's folder.
        name: of the file below build/data.
        md5: as in dvc.lock.
    """
    cached = root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    return next(
        (path for path in (root / "build" / "data" / name, cached) if _md5(path) == md5), None
    )


def commit(seen: Evidence) -> str:
    """Look the code's commit up."""
    told = seen.record["lineage"].get("git_commit")
    if told is None:
        raise Unknown("the run was not started in a git repository")
    if git(seen.root, "rev-parse", "HEAD") is None:
        raise Unknown(
            f"this folder is no git repository in which commit {told[:12]} could be looked up"
        )
    if not has_commit(seen.root, told):
        if git(seen.root, "rev-parse", "--is-shallow-repository") == "true":
            raise Unknown(
                f"this clone is shallow and lacks commit {told[:12]}; git fetch --unshallow brings it"
            )
        raise Broken(f"commit {told} is not known to this repository")
    clean = seen.record["lineage"].get("git_clean")
    return f"commit {told[:12]} is known" + (
        "" if clean else "; the run had changes that were not committed"
    )


def measured_again(seen: Evidence) -> str:
    """Measure the perplexities again, as far as their texts are here."""
    from elder.evaluation.perplexity import perplexity_of_text
    from elder.model.forward import seed_everything
    from elder.model.load import block_length, load_model

    recorded = validate(seen.record["lineage"]["params"])
    row = next(row for row in seen.record["rows"] if row["kind"] == "candidate")
    seed_everything(recorded.calibration.seed)
    loaded = load_model(_own(recorded.model, seen.folder, seen))
    asked = (
        recorded.evaluate.seq_len
        if recorded.evaluate.seq_len != "auto"
        else recorded.calibration.seq_len
    )
    length, said = block_length(asked, loaded.model), []
    for domain, told in row["perplexity"].items():
        name = f"{domain}.txt"
        text = find_data(seen.root, name, seen.record["lineage"]["data"][name])
        if text is None:
            raise Unknown(f"the text {name} was not found by its digest")
        wanted = recorded.evaluate
        found = perplexity_of_text(loaded, text, length, wanted.max_tokens, wanted.batch)[
            "perplexity"
        ]
        if not math.isclose(found, told["perplexity"], rel_tol=TOLERANCE):
            raise Broken(
                f"perplexity {domain} is {found:.4f}, the record says {told['perplexity']:.4f}"
            )
        said.append(f"{domain} {found:.4f}")
    return f"measured again: {', '.join(said)}"


def _own(recorded: params.Model, folder: Path, seen: Evidence) -> params.Model:
    """Return how to load a folder; the record may not decide whether code that comes with a model is run."""
    trusted = seen.settings.model.trust_remote_code
    return recorded.model_copy(
        update={"name": str(folder), "revision": None, "trust_remote_code": trusted}
    )


def _attached(seen: Evidence, name: str) -> Any:
    """Return the JSON attached to the MLflow run."""
    with plain_refusals(seen.settings.registry), tempfile.TemporaryDirectory() as place:
        try:
            path = seen.client.download_artifacts(seen.run.info.run_id, name, place)
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:
            raise Broken(f"{name} of the MLflow run is not JSON") from None


def _same(title: str, wanted: dict[str, Any], found: dict[str, Any]) -> str:
    differing = sorted(
        key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)
    )
    if differing:
        raise Broken(f"{title} of the MLflow run differ from the record: {_some(differing)}")
    return f"{len(wanted)} {title} of the MLflow run are those of the record"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def _md5(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


RECORD_CHECKS: dict[str, Check] = {
    "record in MLflow": registry_record,
    "parameters in MLflow": registry_params,
    "metrics in MLflow": registry_metrics,
    "tags": registry_tags,
    "gate": gate,
    "layer weights": layer_weights,
    "source model": source_model,
    "data": data,
    "commit": commit,
}
