"""The model card that goes with a shallower model: the report's content as Markdown, with the Hub's front matter.

It works with the whole record of a flow and with the shorter one of ``elder compress``, which has no evaluation.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from elder.names import hub_id
from elder.report.html import Record, environment, summary
from elder.report.plot import DOMAINS, finite


def model_card(record: Record) -> str:
    """Return the README.md of a saved model: YAML front matter, then what was done, what it cost and how to load it.

    Args:
        record: the record of a flow, or that of ``elder compress`` alone; parts that lack are left out.
    """
    context = summary(record)
    templates = environment()
    templates.filters["cell"] = cell
    front = yaml.safe_dump(front_matter(context), sort_keys=False, allow_unicode=True)
    body = templates.get_template("card.md.j2").render(
        context, name=model_name(context["record"]), domains=DOMAINS
    )
    return f"---\n{front}---\n\n{body.strip()}\n"


def front_matter(context: Record) -> Record:
    """Return the Hub's metadata: the base model only if it is on the Hub, the licence only if it is known."""
    record = context["record"]
    model = record["model"]
    front: Record = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base := hub_id(model["name"]):
        front |= {"base_model": base, "base_model_relation": "finetune"}
    if model.get("license"):
        front["license"] = model["license"]
    front["tags"] = ["elder", "pruning", "depth-pruning", "layer-removal"]
    if results := _results(context):
        front["model-index"] = [{"name": model_name(record), "results": results}]
    return front


def model_name(record: Record) -> str:
    """Return what the shallower model is called: the base's last name and how many layers went."""
    base = record["model"]["name"].rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
    return f"{base}-minus-{len(record['removed'])}"


def cell(value: Any) -> str:
    """Make any text safe inside a cell of a Markdown table: one line, no bar, no markup."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;")


def _results(context: Record) -> list[Record]:
    """Return the candidate's perplexities and tasks in the Hub's model-index form."""
    row = context["candidate"] or {}
    texts = ((context["record"].get("lineage") or {}).get("params") or {}).get("evaluate") or {}
    results = [
        _result(
            Path(texts.get(domain) or domain).stem,
            "perplexity",
            f"Perplexity {label}",
            found["perplexity"],
        )
        for domain, label in DOMAINS.items()
        if (found := (row.get("perplexity") or {}).get(domain)) and finite(found["perplexity"])
    ]
    tasks = (row.get("tasks") or {}).items()
    return results + [
        _result(task, t["metric"], t["metric"], t["value"])
        for task, t in tasks
        if finite(t["value"])
    ]


def _result(dataset: str, metric: str, label: str, value: float) -> Record:
    return {
        "task": {"type": "text-generation", "name": "Text Generation"},
        "dataset": {"type": dataset, "name": dataset},
        "metrics": [{"type": metric, "name": label, "value": value}],
    }
