"""A record without standard errors, and with a perplexity that is not finite, goes all the way to whoever reads it."""

import json

import pytest

from elder.record import Record
from elder.report.card import model_card
from tasks.provenance.bom import RECORD, bom
from tasks.registry.metrics import metrics_of
from tasks.store.manifest import File
from tests.elder.records import DIGEST, make_record


@pytest.fixture
def record() -> Record:
    """Return the record of a run on one block and one item a task, whose best baseline is utterly broken."""
    tree = make_record()
    for row in tree["rows"]:
        row["task_mean"]["stderr"] = None
        for one in (*row["tasks"].values(), *row["perplexity"].values()):
            one["stderr"] = None
    tree["rows"][2]["perplexity"]["out_of_domain"]["perplexity"] = None
    return Record.model_validate(tree)


def test_the_bill_of_materials_gives_values_without_an_interval(record: Record) -> None:
    told = json.loads(bom(record, {RECORD: File(sha256=DIGEST, bytes=1)}))
    analysis = told["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    values = {one["slice"]: one for one in analysis["performanceMetrics"]}
    assert values["default, out_of_domain"] == {
        "type": "perplexity",
        "slice": "default, out_of_domain",
        "value": "45.7",
    }
    assert "shortgpt, in_domain" in values
    assert "shortgpt, out_of_domain" not in values, "what is not finite is no number"
    assert not any("confidenceInterval" in one for one in values.values())


def test_the_registry_gets_values_without_errors(record: Record) -> None:
    metrics = {name: value for name, value, _ in metrics_of(record)}
    assert metrics["default/perplexity/out_of_domain"] == 45.7
    assert "shortgpt/perplexity/out_of_domain" not in metrics
    assert not any(name.endswith("_stderr") for name in metrics)


def test_the_card_gives_values_alone(record: Record) -> None:
    card = model_card(record)
    assert "| **default** | 41.60 | 45.70 | 0.7786 |" in card
    assert "| shortgpt | 47.90 | – |" in card
