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
from elder.params import Params, load_params
from elder.plot import comparison_png
from elder.progress import say
from elder.recipes import apply_method
from elder.saving import write_json
from elder.stages import STAGES

# label -> method, and what is set on top of its recipe; recovery has the default's budget and search everywhere
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "shortgpt": ("shortgpt", {}),
    "sleb": ("sleb", {}),
    "elder, as published": ("elder", {}),
    "shortgpt, remove-then-train": ("shortgpt", {"mode": "train"}),
    "shortgpt, remove-then-distil": ("shortgpt", {"mode": "distil"}),
    "sleb, remove-then-train": ("sleb", {"mode": "train"}),
    "sleb, remove-then-distil": ("sleb", {"mode": "distil"}),
    "default": ("default", {}),
}


def settings_of(base: Params, method: str, recovery: dict[str, Any]) -> Params:
    """Return the parameters of one row."""
    settings = apply_method(base, method)
    return settings.model_copy(update={"recover": settings.recover.model_copy(update=recovery)})


def measure(loaded: Loaded, settings: Params) -> dict[str, Any]:
    """Return the perplexity in and out of domain."""
    wanted = settings.evaluate
    length = block_length(wanted.seq_len, loaded.model)
    texts = {"in_domain": wanted.in_domain, "out_of_domain": wanted.out_of_domain}
    return {
        domain: perplexity(loaded, evaluation_blocks(Path(path), loaded.tokenizer, length), wanted.batch)
        for domain, path in texts.items()
    }


def compress_row(label: str, settings: Params, method: str, work: Path) -> dict[str, Any]:
    """Compress and measure one row, or read what was measured before."""
    result = work.with_suffix(".json")
    job = open_job(work, settings, Path(settings.calibration.source))
    if result.exists() and (work / "recover.json").exists():
        return json.loads(result.read_text())
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


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown.

    The gap is in log-perplexity, out of domain: what the better of shortgpt and sleb leaves without training.
    """

    def nll(row: dict[str, Any]) -> float:
        return math.log(row["perplexity"]["out_of_domain"]["perplexity"])

    dense = nll(rows[0])
    gap = min(nll(row) for row in rows if row["name"] in ("shortgpt", "sleb")) - dense
    lines = [
        "| | layers removed | perplexity in domain | out of domain | gap closed | tokens trained on | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        inside, outside = row["perplexity"]["in_domain"], row["perplexity"]["out_of_domain"]
        closed = "" if row is rows[0] else f"{1 - (nll(row) - dense) / gap:.0%}"
        layers = ", ".join(map(str, row["removed"]))
        lines.append(
            f"| {row['name']} | {layers} | {inside['perplexity']:.2f} ± {inside['stderr']:.2f} "
            f"| {outside['perplexity']:.2f} ± {outside['stderr']:.2f} | {closed} | {row['tokens_seen']:,} "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all rows and write table, JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the result files")
    parser.add_argument("--set", action="append", default=[], help="override one parameter, as in elder --set")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows to measure")
    args = parser.parse_args()
    base = load_params(Path("params.yaml"), args.set)
    loaded = load_model(base.model)
    work = Path("build/equal_budget") / args.name
    work.mkdir(parents=True, exist_ok=True)
    zero = dict.fromkeys(("tokens_seen", "optimizer_steps", "trainable_parameters", "seconds"), 0)
    rows = [{"name": "dense", "kind": "dense", "removed": [], "perplexity": measure(loaded, base), **zero}]
    for label in ROWS:
        if label in args.rows:
            method, recovery = ROWS[label]
            place = work / label.replace(", ", "-").replace(" ", "-")
            rows.append(compress_row(label, settings_of(base, method, recovery), method, place))
            say(table(rows).splitlines()[-1]) if len(rows) > 2 else None
    results = Path("benchmarks/results")
    text = table(rows)
    (results / f"{args.name}.md").write_text(text)
    stamp = {"date": datetime.now(UTC).date().isoformat(), "params": base.model_dump(mode="json"), **environment()}
    write_json(results / f"{args.name}.json", {"rows": rows, **stamp})
    comparison_png(rows, results / f"{args.name}.png")
    print(text)


if __name__ == "__main__":
    main()
