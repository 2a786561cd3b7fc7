"""Methods side by side at equal budget: the table in the README comes from here.

    .venv/bin/python benchmarks/equal_budget.py --name bundled-25

Each row is compressed with the parameters of params.yaml and measured on both held-out texts. The work lies in
build/equal_budget and is gone on with after any interruption; the table is written to benchmarks/results/.
"""

import argparse
import json
import math
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from elder.compress import describe, open_job
from elder.data import evaluation_blocks
from elder.environment import environment
from elder.evaluate import perplexity
from elder.model import Loaded, block_length, load_model
from elder.params import Params, load_params, validate
from elder.plot import comparison_png
from elder.progress import quiet_libraries, say
from elder.recipes import apply_method
from elder.saving import write_json
from elder.stages import STAGES

# label -> method, and what is set on top of its recipe; recovery has the default's budget and search everywhere
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "shortgpt": ("shortgpt", {}),
    "sleb": ("sleb", {}),
    "elder, as published": ("elder", {}),
    "sleb, remove-then-train": ("sleb", {"recover.mode": "train"}),
    "shortgpt, remove-then-distil": ("shortgpt", {"recover.mode": "distil"}),
    "shortgpt, remove-then-train": ("shortgpt", {"recover.mode": "train"}),
    "elder's layers, remove-then-distil": (
        "elder",
        {"select.place": "residual", "select.lambda1": 0.2, "regularise.epochs": 0, "recover.mode": "distil"},
    ),
}


def settings_of(base: Params, method: str, changes: dict[str, Any]) -> Params:
    """Return the parameters of one row."""
    tree = apply_method(base, method).model_dump()
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    return validate(tree)


def measure(loaded: Loaded, settings: Params) -> dict[str, Any]:
    """Return the perplexity in and out of domain."""
    wanted = settings.evaluate
    length = block_length(wanted.seq_len, loaded.model)
    texts = {"in_domain": wanted.in_domain, "out_of_domain": wanted.out_of_domain}
    return {
        domain: perplexity(
            loaded, evaluation_blocks(Path(path), loaded.tokenizer, length, wanted.max_tokens), wanted.batch
        )
        for domain, path in texts.items()
    }


def compress_row(label: str, settings: Params, method: str, work: Path) -> dict[str, Any]:
    """Compress and measure one row, or read what was measured before."""
    result = work.with_suffix(".json")
    job = open_job(work, settings, Path(settings.calibration.source))
    if result.exists() and (work / "recover.json").exists():
        return json.loads(result.read_text())
    share_selection(work, settings)
    for stage in STAGES:
        job.run(stage)
    record = describe(job, method)
    found = measure(job.load(job.folder("recover") or job.folder("remove"), load_model(settings.model).dtype), settings)
    keys = (
        "removed",
        "search",
        "tokens_seen",
        "optimizer_steps",
        "trainable_parameters",
        "seconds",
        "peak_memory_bytes",
    )
    row = {"name": label, "kind": "candidate" if label == "default" else "baseline", "perplexity": found}
    row |= {key: record[key] for key in keys} | {"parameters": record["parameters_after"]}
    write_json(result, row)
    for stage in STAGES:
        shutil.rmtree(work / stage, ignore_errors=True)
    return row


def share_selection(work: Path, settings: Params) -> None:
    """Take over the selection of a row that selected in the same way."""
    wanted = work.with_suffix(".select")
    wanted.write_text(settings.select.model_dump_json())
    for other in sorted(work.parent.glob("*.select")):
        learnt = other.with_suffix("") / "learn.json"
        if other.read_text() == wanted.read_text() and learnt.exists() and not (work / "learn.json").exists():
            shutil.copy(learnt, work / "learn.json")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown.

    The gap is in log-perplexity, out of domain: what the better of shortgpt and sleb leaves without training.
    """

    def nll(row: dict[str, Any]) -> float:
        return math.log(row["perplexity"]["out_of_domain"]["perplexity"])

    dense = nll(rows[0])
    gap = min(nll(row) for row in rows if row["name"] in ("shortgpt", "sleb")) - dense
    lines = [
        "| | layers removed | perplexity in domain | out of domain | gap closed | tokens trained on |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        inside, outside = row["perplexity"]["in_domain"], row["perplexity"]["out_of_domain"]
        closed = "" if row is rows[0] else f"{1 - (nll(row) - dense) / gap:.0%}"
        layers = ", ".join(map(str, row["removed"]))
        lines.append(
            f"| {row['name']} | {layers} | {inside['perplexity']:.2f} ± {inside['stderr']:.2f} "
            f"| {outside['perplexity']:.2f} ± {outside['stderr']:.2f} | {closed} | {row['tokens_seen']:,} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all rows and write table, JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the result files")
    parser.add_argument("--set", action="append", default=[], help="override one parameter, as in elder --set")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows to measure")
    args = parser.parse_args()
    quiet_libraries()
    base = load_params(Path("params.yaml"), args.set)
    loaded = load_model(base.model)
    work = Path("build/equal_budget") / args.name
    work.mkdir(parents=True, exist_ok=True)
    zero = dict.fromkeys(("tokens_seen", "optimizer_steps", "trainable_parameters", "seconds"), 0)
    rows = [{"name": "dense", "kind": "dense", "removed": [], "perplexity": measure(loaded, base), **zero}]
    for label in ROWS:
        if label in args.rows:
            method, recovery = ROWS[label]
            place = work / "".join(c if c.isalnum() else "-" for c in label)
            rows.append(compress_row(label, settings_of(base, method, recovery), method, place))
            say(f"{label}: {rows[-1]['perplexity']['out_of_domain']['perplexity']:.2f} out of domain")
    results = Path("benchmarks/results")
    text = table(rows)
    (results / f"{args.name}.md").write_text(text)
    stamp = {"date": datetime.now(UTC).date().isoformat(), "params": base.model_dump(mode="json"), **environment()}
    write_json(results / f"{args.name}.json", {"rows": rows, **stamp})
    comparison_png(rows, results / f"{args.name}.png")
    print(text)


if __name__ == "__main__":
    main()
