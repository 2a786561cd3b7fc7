"""The report: every number is there, nothing is fetched, hostile text stays text, absent parts vanish."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from elder.record import CompressionRecord, Record
from elder.report.card import model_card
from elder.report.html import write_report
from elder.report.summary import summarise
from tests.elder.records import compress_record, make_record

HOSTILE = '<script>alert("1")</script>|`x`'


def typed(tree: dict[str, Any]) -> CompressionRecord:
    kind = Record if "run_id" in tree else CompressionRecord
    return kind.model_validate(tree)


def render(tree: dict[str, Any], folder: Path) -> str:
    path = folder / "new" / "report.html"
    write_report(typed(tree), path)
    return path.read_text(encoding="utf-8")


def card_body(tree: dict[str, Any], _: Path) -> str:
    return model_card(typed(tree)).split("---\n", 2)[2]


def test_report_loads_nothing_and_runs_nothing(tmp_path):
    page = render(make_record(), tmp_path)
    assert not re.search(
        r"""(?i)\b(?:src|href|action|data|poster)\s*=|url\(|@import|https?:|<script|<link|<iframe""",
        page,
    )
    assert "default-src 'none'" in page


def test_report_has_every_row_rule_and_digest(tmp_path):
    record = make_record()
    page = render(record, tmp_path)
    for row in record["rows"]:
        assert page.count(f'<th scope="row">{row["name"]}</th>') == 7, (
            "two domains, the mean, three tasks, the budget"
        )
    for rule in record["gate"]["rules"]:
        assert rule["rule"] in page
        assert rule["reason"].replace("'", "&#39;") in page
    for digest in (
        *record["lineage"]["data"].values(),
        *(f["sha256"] for f in record["artifact"]["files"].values()),
    ):
        assert digest in page
    for shown in (
        "45.70 ± 0.62",
        "0.779 ± 0.018",
        "196,608",
        "1 min 43 s",
        "1.31 × as fast",
        "Gate passed",
    ):
        assert shown in page


def test_headline_says_how_much_of_the_gap_is_closed():
    # ln(51.6 / 45.7) / ln(51.6 / 41.3) = 0.12143 / 0.22265 = 0.5454
    headline = summarise(typed(make_record())).headline
    assert headline.closed == pytest.approx(0.5454, abs=1e-4)
    assert (headline.best.name, headline.best.tokens) == ("sleb", 0)


@pytest.mark.parametrize("render_it", [render, card_body])
def test_hostile_text_stays_text(render_it, tmp_path):
    record = make_record()
    record["model"]["name"] = record["method"] = record["rows"][1]["name"] = HOSTILE
    record["gate"]["rules"][0]["reason"] = record["lineage"]["started_by"] = HOSTILE
    record["scores"]["name"] = record["search"][0]["stage"] = HOSTILE
    record["lineage"]["packages"] = record["lineage"]["data"] = {HOSTILE: HOSTILE}
    text = render_it(record, tmp_path)
    assert "<script>" not in re.sub(r"(?s)```yaml.*?```", "", text)
    assert "&lt;script" in text


ABSENT = "absent"
NULLABLE = ("scores", "weights", "speed", "artifact", "method", "energy", "champion")
LEFT_OUT = (*NULLABLE, "curve", "search", "lineage", "kept", "recipe", "seconds")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *((part, ABSENT) for part in LEFT_OUT),
        *((part, None) for part in NULLABLE),
        ("rows", []),
        ("lineage", {}),
    ],
)
@pytest.mark.parametrize("make", [make_record, compress_record])
def test_absent_parts_leave_no_trace(make, part, value, tmp_path):
    record = make()
    if value == ABSENT:
        record.pop(part, None)
    else:
        record[part] = value
    for text in (render(record, tmp_path), card_body(record, tmp_path)):
        assert "Undefined" not in text
        assert "None" not in text


def test_a_value_without_a_standard_error_stands_alone(tmp_path):
    record = make_record() | {"speed": None}
    for row in record["rows"]:
        row["task_mean"]["stderr"] = None
        for one in (*row["tasks"].values(), *row["perplexity"].values()):
            one["stderr"] = None
    page, card = render(record, tmp_path), card_body(record, tmp_path)
    for text in (page, card):
        assert not re.search(r"\d ± ", text)
        assert "± –" not in text
    assert '<dd class="note">dense 0.787</dd>' in page
    assert "| **default** | 41.60 | 45.70 | 0.7786 |" in card


def test_absent_sections_vanish_or_say_so(tmp_path):
    assert all(
        title in render(make_record(), tmp_path)
        for title in ("<h2>Scores", "<h2>Tasks", "<h2>Training", "<h2>Gate")
    )
    page = render(
        compress_record() | {"scores": None, "curve": [], "search": []}, tmp_path
    )
    assert not any(
        title in page
        for title in (
            "<h2>Scores",
            "<h2>Tasks",
            "<h2>Speed",
            "<h2>Training",
            "<h2>Gate",
        )
    )
    assert "No gate in this run" in page
    record = make_record() | {
        "speed": None,
        "gate": {"mode": "off", "passed": True, "rules": []},
    }
    record["rows"] = [
        row | {"tasks": {}, "task_mean": None}
        for row in record["rows"]
        if row["kind"] != "baseline"
    ]
    page = render(record, tmp_path)
    assert all(
        said in page
        for said in (
            "No task was evaluated",
            "Speed was not measured",
            "Gate switched off",
        )
    )
    assert "best baseline" not in page


@pytest.mark.parametrize(
    ("mode", "passed", "badge"),
    [("on", False, "Gate refused"), ("dry-run", True, "dry run")],
)
def test_badge(mode, passed, badge, tmp_path):
    record = make_record()
    record["gate"] |= {"mode": mode, "passed": passed}
    assert badge in render(record, tmp_path)


def test_eighty_layers(tmp_path):
    page = render(make_record(80, tuple(range(30, 70, 2))), tmp_path)
    assert page.count('<li class="out">') == 20
    assert page.count('<td class="goes"') == 40, (
        "twenty rounds of scores and of weights"
    )
    assert len(page) < 1_500_000


def test_values_that_are_not_finite_get_no_dot(tmp_path):
    record = make_record()
    record["rows"][2]["perplexity"]["out_of_domain"]["perplexity"] = float("inf")
    record["rows"][3]["perplexity"]["in_domain"] |= {
        "perplexity": float("nan"),
        "stderr": None,
    }
    record["rows"][4]["perplexity"]["in_domain"]["perplexity"] = (
        None  # what JSON makes of it
    )
    assert "∞" in render(record, tmp_path)
    assert render(record, tmp_path).count('class="dot"') == 5 * 6 - 3
    assert yaml.safe_load(model_card(typed(record)).split("---\n")[1])


def test_report_says_that_weights_were_dequantised(tmp_path):
    record = make_record()
    record["model"]["dequantised_from"] = "fp8"
    assert re.search(
        r"<dt>Weights dequantised from</dt>\s*<dd>fp8", render(record, tmp_path)
    )
