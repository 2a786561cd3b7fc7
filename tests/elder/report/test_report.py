"""The report and the card: every number is there, nothing is fetched, hostile text stays text, absent parts vanish."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from elder.report.card import model_card
from elder.report.html import compact, duration, either, number, size, summary, write_report
from elder.report.plot import comparison_png, dot_plot

TASKS = ("anaphor_agreement", "determiner_noun_agreement", "irregular_past_participle")
HOSTILE = '<script>alert("1")</script>|`x`'


def make_row(
    name: str, kind: str, removed: list[int], inside: float, outside: float, trained: int = 0
) -> dict[str, Any]:
    tasks = {
        task: {
            "metric": "acc",
            "value": 0.9 - outside / 500 - 0.03 * index,
            "stderr": 0.031,
            "version": 1.0,
        }
        for index, task in enumerate(TASKS)
    }
    return {
        "name": name,
        "kind": kind,
        "removed": removed,
        "perplexity": {
            "in_domain": {"perplexity": inside, "stderr": 0.41, "tokens": 65_280},
            "out_of_domain": {"perplexity": outside, "stderr": 0.62, "tokens": 130_560},
        },
        "tasks": tasks,
        "task_mean": {"value": 0.87 - outside / 500, "stderr": 0.018},
        "parameters": 5_730_000 - 1_234_944 * len(removed) // max(3, len(removed)),
        "tokens_seen": trained,
        "optimizer_steps": trained // 2048,
        "trainable_parameters": 4_495_056 if trained else 0,
        "seconds": 4.21 + trained / 2000,
        "peak_memory_bytes": 812_646_400,
    }


def make_record(layers: int = 12, removed: tuple[int, ...] = (8, 7, 4)) -> dict[str, Any]:
    """Return a whole record of a run whose numbers resemble a real one."""
    rounds = []
    for turn, gone in enumerate(removed):
        worth = [130_200 + 37 * (layer - gone) ** 2 + 1_900 * turn for layer in range(layers)]
        hidden = {0, layers - 1, *removed[:turn]}
        rounds.append(
            {
                "removed": gone,
                "values": [None if i in hidden else float(v) for i, v in enumerate(worth)],
            }
        )
    learnt = [
        {
            "removed": gone,
            "values": [round(0.2 + 0.06 * abs(layer - gone), 3) for layer in range(layers)],
        }
        for gone in removed
    ]
    steps = range(1, 97)
    return {
        "run_id": "20261124-021500-ab12cd34",
        "created": "2026-11-24T02:15:00+00:00",
        "seconds": 214.6,
        "model": {
            "name": "models/novels-llama",
            "revision": None,
            "digest": "5f" * 32,
            "num_layers": layers,
            "parameters": 5_730_000,
        },
        "method": "default",
        "recipe": {
            "select": {"method": "sleb", "layers": len(removed)},
            "recover": {"mode": "distil", "lr": 3e-4},
        },
        "removed": list(removed),
        "kept": [layer for layer in range(layers) if layer not in removed],
        "scores": {"name": "summed loss", "lower_goes": True, "rounds": rounds},
        "weights": {"lower_goes": True, "rounds": learnt},
        "rows": [
            make_row("dense", "dense", [], 38.2, 41.3),
            make_row("default", "candidate", list(removed), 41.6, 45.7, trained=196_608),
            make_row("shortgpt", "baseline", list(removed), 47.9, 51.8),
            make_row("sleb", "baseline", list(removed), 47.1, 51.6),
            make_row("elder", "baseline", list(removed), 47.4, 51.9, trained=196_608),
        ],
        "curve": [
            {
                "stage": "recover",
                "step": step,
                "loss": 0.9 / step**0.3 + 0.02 * (step % 7),
                "lr": 3e-4 * step / 96,
            }
            for step in steps
        ],
        "search": [
            {
                "stage": "recover",
                "lr": lr,
                "lambda2": None,
                "held_out_loss": loss,
                "tokens": 16_384,
                "chosen": lr == 3e-4,
            }
            for lr, loss in ((1e-4, 3.871), (3e-4, 3.842), (1e-3, 3.913))
        ],
        "speed": {
            "dense": {
                "prompt_ms": 21.42,
                "prompt_ms_stdev": 0.61,
                "tokens_per_second": 1029.3,
                "peak_memory_bytes": 612_646_400,
                "parameters": 5_730_000,
            },
            "pruned": {
                "prompt_ms": 16.31,
                "prompt_ms_stdev": 0.48,
                "tokens_per_second": 1348.8,
                "peak_memory_bytes": 572_646_400,
                "parameters": 4_495_056,
            },
            "ratio": {"prompt_speedup": 1.313, "throughput": 1.310, "memory": 0.935},
            "protocol": {"prompt_tokens": 256, "batch": 16, "new_tokens": 64, "device": "cpu"},
        },
        "gate": {
            "mode": "on",
            "passed": True,
            "rules": [
                {
                    "rule": "perplexity out of domain",
                    "value": 1.1065,
                    "limit": 1.5,
                    "passed": True,
                    "reason": "The pruned model's perplexity is 1.11 times the dense model's; at most 1.5 is allowed.",
                },
                {
                    "rule": "generation with and without cache",
                    "value": True,
                    "limit": True,
                    "passed": True,
                    "reason": "Greedy generation gives the same tokens either way.",
                },
            ],
        },
        "lineage": {
            "git_commit": "0c65f02" + "a" * 33,
            "git_clean": True,
            "data": {"calibration.txt": "9b" * 16, "held_out.txt": "3c" * 16},
            "dvc_lock_sha256": "7e" * 32,
            "packages": {"torch": "2.13.0", "transformers": "5.23.0", "mlflow": "3.17.2"},
            "python": "3.11.7",
            "platform": "Linux-6.8-x86_64",
            "device": "cpu",
            "threads": 2,
            "seed": 0,
            "params": {
                "select": {"method": "sleb", "ratio": 0.25},
                "evaluate": {
                    "in_domain": "data/in_domain.txt",
                    "out_of_domain": "data/held_out.txt",
                },
            },
            "started_by": "ada",
        },
        "model_version": "3",
        "artifact": {
            "url": "s3://models/novels-llama-shallow/5f5f",
            "digest": "5f" * 32,
            "files": {
                "model.safetensors": {"sha256": "ab" * 32, "bytes": 9_012_345},
                "config.json": {"sha256": "cd" * 32, "bytes": 812},
            },
        },
    }


def compress_record() -> dict[str, Any]:
    """Return the record of ``elder compress`` alone: no rows, no speed, no gate."""
    whole = make_record()
    keys = (
        "model",
        "method",
        "recipe",
        "removed",
        "kept",
        "scores",
        "curve",
        "search",
        "seconds",
    )
    spent = {
        "tokens_seen": 196_608,
        "tokens_generated": 131_072,
        "optimizer_steps": 96,
        "trainable_parameters": 4_495_056,
    }
    sizes = {"parameters_before": 5_730_000, "parameters_after": 4_495_056}
    return (
        {key: whole[key] for key in keys}
        | spent
        | sizes
        | {"lineage": {"seed": 0, "packages": {"torch": "2.13.0"}}}
    )


def render(record: dict[str, Any], folder: Path) -> str:
    write_report(record, folder / "new" / "report.html")
    return (folder / "new" / "report.html").read_text(encoding="utf-8")


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


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
    headline = summary(make_record())["headline"]
    assert headline["closed"] == pytest.approx(0.5454, abs=1e-4)
    assert (headline["best"]["name"], headline["best"]["tokens"]) == ("sleb", 0)


@pytest.mark.parametrize(
    "render_it", [render, lambda record, _: model_card(record).split("---\n", 2)[2]]
)
def test_hostile_text_stays_text(render_it, tmp_path):
    record = make_record()
    record["model"]["name"] = record["method"] = record["rows"][1]["name"] = HOSTILE
    record["gate"]["rules"][0]["reason"] = record["lineage"]["started_by"] = HOSTILE
    record["scores"]["name"] = record["search"][0]["stage"] = HOSTILE
    record["lineage"]["packages"] = record["lineage"]["data"] = {HOSTILE: HOSTILE}
    text = render_it(record, tmp_path)
    assert "<script>" not in re.sub(r"(?s)```yaml.*?```", "", text)
    assert "&lt;script" in text


@pytest.mark.parametrize(
    "part",
    [
        "scores",
        "weights",
        "rows",
        "curve",
        "search",
        "speed",
        "gate",
        "lineage",
        "artifact",
        "created",
        "kept",
        "recipe",
        "method",
    ],
)
@pytest.mark.parametrize("value", ["absent", None])
def test_absent_parts_leave_no_trace(part, value, tmp_path):
    record = make_record()
    record.pop(part) if value == "absent" else record.update({part: value})
    for text in (render(record, tmp_path), model_card(record)):
        assert "Undefined" not in text
        assert "None" not in text


def test_absent_sections_vanish_or_say_so(tmp_path):
    assert all(
        title in render(make_record(), tmp_path)
        for title in ("<h2>Scores", "<h2>Tasks", "<h2>Training", "<h2>Gate")
    )
    page = render(compress_record() | {"scores": None, "curve": [], "search": []}, tmp_path)
    assert not any(
        title in page
        for title in ("<h2>Scores", "<h2>Tasks", "<h2>Speed", "<h2>Training", "<h2>Gate")
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
        for said in ("No task was evaluated", "Speed was not measured", "Gate switched off")
    )
    assert "best baseline" not in page


@pytest.mark.parametrize(
    ("mode", "passed", "badge"), [("on", False, "Gate refused"), ("dry-run", True, "dry run")]
)
def test_badge(mode, passed, badge, tmp_path):
    record = make_record()
    record["gate"] |= {"mode": mode, "passed": passed}
    assert badge in render(record, tmp_path)


def test_eighty_layers(tmp_path):
    page = render(make_record(80, tuple(range(30, 70, 2))), tmp_path)
    assert page.count('<li class="out">') == 20
    assert page.count('<td class="goes"') == 40, "twenty rounds of scores and of weights"
    assert len(page) < 1_500_000


def test_values_that_are_not_finite_get_no_dot(tmp_path):
    record = make_record()
    record["rows"][2]["perplexity"]["out_of_domain"]["perplexity"] = float("inf")
    record["rows"][3]["perplexity"]["in_domain"] |= {"perplexity": float("nan"), "stderr": None}
    assert "∞" in render(record, tmp_path)
    assert render(record, tmp_path).count('class="dot"') == 5 * 6 - 2
    assert yaml.safe_load(model_card(record).split("---\n")[1])


def test_dot_plot_places_values_on_a_log_scale():
    points = [
        {"name": n, "kind": k, "value": v, "error": 0}
        for n, k, v in (("d", "dense", 1.0), ("m", "baseline", 10.0), ("c", "candidate", 100.0))
    ]
    plot = dot_plot("x", points, log=True)
    places = [point["at"][1] for point in plot["points"]]
    # 6 % of room at both ends of the range: 0.06 / 1.12 = 5.36 %, the geometric middle at 50 %
    assert places == [5.36, 50.0, 94.64]
    assert plot["dense"]["at"][1] == 5.36


def test_numbers_read_well():
    assert [number(x) for x in (None, True, 45.698, 1234.5, 131072, float("inf"))] == [
        "–",
        "yes",
        "45.70",
        "1,234",
        "131,072",
        "∞",
    ]
    assert [number(x, 2) for x in (3e-4, 1e-3, 2e-5)] == ["0.0003", "0.001", "2e-05"]
    assert [compact(x) for x in (5_730_000, 412, 131_072.0)] == ["5.73 M", "412", "131 k"]
    assert [either(48.412, 0.623), either(0.81234, 0.0123), either(7.0, None)] == [
        "48.41 ± 0.62",
        "0.812 ± 0.012",
        "7.000",
    ]
    assert [size(812), size(9_012_345), duration(4.21), duration(214.6), duration(7320)] == [
        "812 B",
        "8.59 MiB",
        "4.2 s",
        "3 min 35 s",
        "2 h 2 min",
    ]


@pytest.mark.parametrize("make", [make_record, compress_record])
def test_front_matter_is_what_the_hub_reads(make):
    record = make()
    record["model"] |= {"name": "ada/novels-llama@main", "license": "apache-2.0"}
    card = model_card(record)
    assert front(card)["base_model"] == "ada/novels-llama"
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "transformers",
        "text-generation",
        "apache-2.0",
    )
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results or []}
    assert found.get(("held_out", "perplexity")) == (45.7 if make is make_record else None)
    assert len(found) == (5 if make is make_record else 0)


@pytest.mark.parametrize(
    "name", ["s3://bucket/models/x", "models:/novels@champion", "/srv/models/x", "../x"]
)
def test_front_matter_names_no_base_or_licence_that_is_not_known(name):
    record = make_record()
    record["model"]["name"] = name
    assert not {"base_model", "license"} & set(front(model_card(record)))


def test_front_matter_leaves_out_a_folder_that_looks_like_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "models" / "novels-llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in front(model_card(make_record()))


def test_card_tables_are_whole():
    card = model_card(make_record())
    tables = re.findall(r"(?:^\|.*\n)+", card, flags=re.M)
    assert len(tables) == 9
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
        assert re.fullmatch(r"\|( -+:? \|)+", table.splitlines()[1])
    assert "| **default** | 41.60 ± 0.41 | 45.70 ± 0.62 | 0.779 ± 0.018 |" in card


def test_card_of_compress_alone():
    card = model_card(compress_record())
    assert "Layers 8, 7, 4 of the dense model went, in this order" in card
    assert "was not evaluated" in card
    assert "| default | 196,608 | 131,072 | 96 | 4.50 M | 3 min 35 s | – |" in card
    assert not any(title in card for title in ("## Results", "## Speed", "## Gate"))


def test_inputs_are_not_changed(tmp_path):
    record = make_record()
    before = copy.deepcopy(record)
    render(record, tmp_path)
    model_card(record)
    assert record == before


def test_comparison_png(tmp_path):
    rows = make_record()["rows"]
    rows[3]["perplexity"]["out_of_domain"]["perplexity"] = float("inf")
    del rows[4]["perplexity"]["in_domain"]
    comparison_png(rows, tmp_path / "new" / "rows.png")
    picture = (tmp_path / "new" / "rows.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) == 1920, "12 inches at 160 dots: three panels"
