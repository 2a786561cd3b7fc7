"""The model card: the Hub reads its front matter, and its tables are whole."""

import re
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from elder.record import CompressionRecord, Record
from elder.report.card import model_card
from tests.elder.records import compress_record, make_record


def card_of(tree: dict[str, Any]) -> str:
    kind = Record if "run_id" in tree else CompressionRecord
    return model_card(kind.model_validate(tree))


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("make", [make_record, compress_record])
def test_front_matter_is_what_the_hub_reads(make):
    record = make()
    record["model"] |= {"name": "ada/novels-llama@main", "license": "apache-2.0"}
    card = card_of(record)
    assert front(card)["base_model"] == "ada/novels-llama"
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "text-generation",
        "apache-2.0",
    )
    found = {
        (r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results or []
    }
    assert found.get(("held_out", "perplexity")) == (
        45.7 if make is make_record else None
    )
    assert len(found) == (5 if make is make_record else 0)


@pytest.mark.parametrize(
    "name", ["s3://bucket/models/x", "models:/novels@champion", "/srv/models/x", "../x"]
)
def test_front_matter_names_no_base_or_licence_that_is_not_known(name):
    record = make_record()
    record["model"]["name"] = name
    assert not {"base_model", "license"} & set(front(card_of(record)))


def test_front_matter_leaves_out_a_folder_that_looks_like_a_hub_id(
    tmp_path, monkeypatch
):
    (tmp_path / "models" / "novels-llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in front(card_of(make_record()))


def test_card_tables_are_whole():
    card = card_of(make_record())
    tables = re.findall(r"(?:^\|.*\n)+", card, flags=re.M)
    assert len(tables) == 9
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
        assert re.fullmatch(r"\|( -+:? \|)+", table.splitlines()[1])
    assert "| **default** | 41.60 ± 0.41 | 45.70 ± 0.62 | 0.779 ± 0.018 |" in card


def test_card_of_compress_alone():
    card = card_of(compress_record())
    assert "Layers 8, 7, 4 of the dense model went, in this order" in card
    assert "was not evaluated" in card
    assert "| default | 196,608 | 131,072 | 96 | 4.50 M | 3 min 35 s | – |" in card
    assert not any(title in card for title in ("## Results", "## Speed", "## Gate"))


@pytest.mark.parametrize("make", [make_record, compress_record])
def test_a_card_says_that_weights_were_dequantised(make):
    record = make()
    assert "dequantised" not in card_of(record)
    record["model"]["dequantised_from"] = "fp8"
    assert "| base weights dequantised from | fp8 |" in card_of(record)


def test_each_trial_names_its_optimiser():
    record = make_record()
    for trial, optimizer in zip(record["search"], ("adamw", "muon", None), strict=True):
        if optimizer:
            trial["optimizer"] = optimizer
    card = card_of(record)
    # the rest of a line is the rate, lambda2, the loss and the tokens of a trial
    table = re.findall(r"^\| recover \| (\S+) \|", card, re.MULTILINE)
    assert table == ["adamw", "muon", "–"]
