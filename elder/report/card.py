"""The model card that goes with a shallower model: the report's content as Markdown, with the Hub's front matter.

It works with the whole record of a flow and with the shorter one of ``elder compress``, which has no evaluation.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from elder.names import GGUF, hub_id
from elder.record import DOMAINS, CompressionRecord, Json, Number, Row, finite
from elder.report.html import environment
from elder.report.summary import summarise

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TAGS = ["elder", "pruning", "depth-pruning", "layer-removal"]


def model_card(record: CompressionRecord) -> str:
    """Return the README.md of a saved model: YAML front matter, then what was done, what it cost and how to load it.

    Args:
        record: of a flow, or of ``elder compress`` alone; parts that lack are left out.
    """
    told = summarise(record)
    templates = environment()
    templates.filters["cell"] = cell
    name = model_name(record.model.name, record.removed)
    front = card_data(record, told.candidate, name).to_yaml()
    body = templates.get_template("card.md.j2").render(
        vars(told), name=name, domains=DOMAINS
    )
    return f"---\n{front}\n---\n\n{body.strip()}\n"


def card_data(
    record: CompressionRecord, candidate: Row | None, name: str
) -> "ModelCardData":
    """Return the Hub's metadata: the base model only if it is on the Hub, the licence only if it is known.

    Args:
        record: what the card is about.
        candidate: the shallower model's row, if it was evaluated.
        name: what the shallower model is called.
    """
    from huggingface_hub import ModelCardData

    base = hub_id(record.model.name)
    results = _results(record, candidate) if candidate else []
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base,
        base_model_relation="finetune" if base else None,
        license=record.model.license,
        tags=TAGS,
        model_name=name if results else None,
        eval_results=results or None,
    )


def model_name(base: str, removed: list[int]) -> str:
    """Return what the shallower model is called: the base's last name and how many layers went."""
    last_name = base.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
    last_name = last_name.removesuffix(GGUF)
    return f"{last_name}-minus-{len(removed)}"


def cell(value: Json) -> str:
    """Make any text safe inside a cell of a Markdown table: one line, no bar, no markup."""
    text = " ".join(str(value).split())
    return (
        re.sub(r"([\\`*_\[\]|])", r"\\\1", text)
        .replace("&", "&amp;")
        .replace("<", "&lt;")
    )


def _results(record: CompressionRecord, candidate: Row) -> "list[EvalResult]":
    """Return the candidate's finite perplexities and tasks."""
    texts = record.lineage.params.get("evaluate") or {}
    results = []
    for domain, label in DOMAINS.items():
        one = candidate.perplexity.get(domain)
        if one and finite(one.perplexity):
            dataset = Path(texts.get(domain) or domain).stem
            results.append(
                _result(dataset, "perplexity", f"Perplexity {label}", one.perplexity)
            )
    for name, task in candidate.tasks.items():
        if finite(task.value):
            results.append(_result(name, task.metric, task.metric, task.value))
    return results


def _result(
    dataset: str, metric: str, label: str, value: Number | None
) -> "EvalResult":
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        task_name="Text Generation",
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=metric,
        metric_name=label,
        metric_value=value,
    )
