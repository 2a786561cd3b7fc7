"""Models and datasets of the Hub, asked of a small one on loopback: commits, large files, refusals, the cache."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import ROOT, make_model
from tests.flows.running import finish, record_of, start
from tests.hub import Hub, files_of, running_hub
from tests.warm import Run, warm

MEMBER, STRANGER = f"hf_{'m' * 30}", f"hf_{'s' * 30}"
CARD = """---
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/train.jsonl
  - split: test
    path: plain/test.jsonl
- config_name: other
  data_files: other.jsonl
---
"""
WIKITEXT = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - split: train
    path: train.jsonl
  - split: test
    path: test.jsonl
---
"""


def rows(name: str) -> bytes:
    lines = [json.dumps({"text": f"{name} {n} " + "word " * 20}) for n in range(200)]
    return "\n".join(lines).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(folder)
    return files_of(folder)


@pytest.fixture(scope="module")
def hub(model: dict[str, bytes]) -> Iterator[Hub]:
    without = {name: value for name, value in model.items() if "safetens" not in name}
    texts = {
        "README.md": CARD.encode(),
        "plain/train.jsonl": rows("train"),
        "plain/test.jsonl": rows("test"),
        "other.jsonl": rows("other"),
    }
    with running_hub() as hub:
        gated = {"gated": True, "members": {MEMBER}}
        hub.add("model", "owner/gated", model, model | {"new": b"x"}, **gated)
        hub.add("model", "owner/tiny", model)
        hub.add("model", "owner/bare", without)
        hub.add("model", "owner/pickle", without | {"pytorch_model.bin": b"x"})
        hub.add("model", "owner/lora", model | {"adapter_config.json": b"{}"})
        silent = {name: model[name] for name in model if "token" not in name}
        hub.add("model", "owner/mute", silent)
        hub.add("dataset", "owner/set", texts)
        hub.add("dataset", "owner/closed", texts, **gated)
        yield hub


@pytest.fixture(scope="module")
def run(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("home")
    with warm(HF_ENDPOINT=hub.url, HF_HOME=str(home), HF_HUB_OFFLINE="") as run:
        yield run


@pytest.fixture
def place(tmp_path: Path, hub: Hub) -> Path:
    (tmp_path / "novel.txt").write_text("It was a bright cold day. " * 40)
    hub.asked.clear()
    return tmp_path


def test_a_gated_model_comes_from_its_commit_though_the_download_is_cut(
    run: Run, hub: Hub, model: dict[str, bytes], place: Path
) -> None:
    commits = list(hub.repositories["model", "owner/gated"].files)
    weights = hashlib.sha256(model["model.safetensors"]).hexdigest()
    hub.cut[weights] = 9000
    recipe = "--method shortgpt --recover none --layers 1 --samples 4 --seq-len 16"
    given = f"{recipe} --calibration novel.txt --output out".split()
    status, said = run(
        "flows.cli", "compress", "owner/gated", *given, cwd=place, HF_TOKEN=MEMBER
    )
    assert status == 0, said
    record = json.loads((place / "out" / "elder.json").read_text())
    assert record["model"]["name"] == "owner/gated"
    assert record["model"]["revision"] == commits[1]
    large = [one for one in hub.asked if one.path.endswith(weights)]
    # eight whole pieces of 1,024 bytes had come
    assert [one.range for one in large] == [None, "bytes=8192-"]
    # the token is for the Hub alone
    assert {one.token for one in hub.asked if "/large/" in one.path} == {False}
    assert all(one.token for one in hub.asked if "/large/" not in one.path)
    # what is read is read from the commit that the branch was at first
    assert not hub.paths("/main")
    written = b"".join(files_of(place / "out").values()).decode(errors="replace")
    assert MEMBER not in said + written


@pytest.mark.slow
def test_what_is_in_the_cache_needs_no_hub(run: Run, hub: Hub, place: Path) -> None:
    given = ["owner/gated", "--text", "novel.txt", "--seq-len", "16"]
    status, said = run("flows.cli", "evaluate", *given, cwd=place, HF_TOKEN=MEMBER)
    assert status == 0, said
    hub.asked.clear()
    status, said = run("flows.cli", "evaluate", *given, cwd=place, HF_HUB_OFFLINE="1")
    assert status == 0, said
    assert not hub.asked
    hub.broken = True
    try:
        status, said = run("flows.cli", "evaluate", *given, cwd=place)
    finally:
        hub.broken = False
    assert status == 0, said
    assert "owner/gated is taken from the Hub's cache, commit" in said


@pytest.mark.parametrize(
    ("name", "env", "sentence"),
    [
        ("owner/none", {}, "no such model on the Hub; check the name, or set HF_TOKEN"),
        ("owner/tiny@nope", {}, "'owner/tiny' of the Hub has no revision 'nope'"),
        ("owner/closed", {}, "is gated, and no token was given: accept its terms at"),
        ("owner/closed", {"HF_TOKEN": STRANGER}, "the account of the token may not"),
        ("owner/bare", {}, "'owner/bare' of the Hub has no weights; it must hold"),
        ("owner/pickle", {}, "has only pickle weights (pytorch_model.bin), which"),
        ("owner/lora", {}, "holds an adapter beside the weights"),
        ("owner/mute", {}, "'owner/mute' of the Hub has no tokenizer"),
        ("owner/tiny", {"HF_HUB_OFFLINE": "1"}, "the cache has no whole copy; unset"),
    ],
)
def test_refusals_say_what_to_do(
    run: Run, hub: Hub, model: dict[str, bytes], place: Path, name, env, sentence
) -> None:
    hub.add("model", "owner/closed", model, gated=True, members={MEMBER})
    given = ["--text", "novel.txt"]
    status, said = run("flows.cli", "evaluate", name, *given, cwd=place, **env)
    assert status == 2
    assert sentence in said
    assert said.count("\n") == 1
    assert STRANGER not in said
    assert not hub.paths("/large/")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("broken", "answers for the model 'owner/tiny' with status 503; try again"),
        ("silent", "does not answer for the model 'owner/tiny' ("),
    ],
)
def test_a_hub_that_is_down_is_said(
    run: Run, hub: Hub, place: Path, fault: str, sentence: str
) -> None:
    setattr(hub, fault, True)
    try:
        given = ["owner/tiny", "--text", "novel.txt"]
        status, said = run("flows.cli", "evaluate", *given, cwd=place)
    finally:
        setattr(hub, fault, False)
    assert status == 2
    assert sentence in said
    assert said.count("\n") == 1


def prepare(
    run: Run, place: Path, stages: str, token: str = MEMBER, **calibration: object
) -> str:
    """Run stages of dvc.yaml as its commands do; returns what the last one said."""
    wanted = {
        "source": "owner/set",
        "config": "plain",
        "split": "test",
        "column": "text",
        "samples": 4,
        "seq_len": 16,
    }
    texts = {"in_domain": "novel.txt", "out_of_domain": "novel.txt"}
    tree = {
        "model": {"name": "owner/gated@main"},
        "calibration": wanted | calibration,
        "evaluate": texts,
    }
    (place / "params.yaml").write_text(yaml.safe_dump(tree))
    said = ""
    for stage in stages.split():
        status, said = run("tasks.prepare", stage, cwd=place, HF_TOKEN=token)
        if status:
            return said
    return said


@pytest.mark.slow
def test_a_dataset_is_streamed_from_its_commit(run: Run, hub: Hub, place: Path) -> None:
    large = hashlib.sha256(rows("test")).hexdigest()
    hub.cut[large] = 3000
    assert prepare(run, place, "pin text blocks") == ""
    data = place / "build" / "data"
    commit = hub.repositories["dataset", "owner/set"].branches["main"]
    source = json.loads((data / "source.json").read_text())
    assert source["revision"] == commit
    assert (source["config"], source["split"]) == ("plain", "test")
    assert (data / "calibration.txt").read_text().startswith("test 0 word")
    assert (data / "calibration.safetensors").is_file()
    # what was cut was asked for again
    assert len(hub.paths(large)) > 1


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        ({"source": "owner/none"}, "and no such dataset on the Hub; check the name"),
        ({"revision": "nope"}, "'owner/set' of the Hub has no revision 'nope'"),
        (
            {"source": "owner/closed", "token": STRANGER},
            "the dataset 'owner/closed' of the Hub is gated, and the account of the",
        ),
        ({"config": "plian"}, "'plian'"),
        ({"split": "tset"}, "has no split 'tset'; did you mean 'test'?"),
        ({"column": "txet"}, "has no column 'txet'; did you mean 'text'?"),
    ],
)
def test_a_dataset_that_is_not_there_is_refused(
    run: Run, place: Path, calibration: dict[str, str], sentence: str
) -> None:
    said = prepare(run, place, "pin text", **calibration)
    assert sentence in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_the_whole_flow_with_a_model_and_a_text_of_the_hub(
    hub: Hub, project: Path, tmp_path: Path
) -> None:
    values = {
        "model.name": "owner/gated",
        "calibration.source": "owner/set",
        "calibration.config": "plain",
        "calibration.split": "train",
    }
    given = [f"{key}={value}" for key, value in values.items()]
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": ""}
    done = finish(project, start(project, *given, env=env | {"HF_TOKEN": MEMBER}))
    assert done.status == 0, done.stderr
    record = record_of(done)
    commits = [
        hub.repositories[kind].branches["main"]
        for kind in (("model", "owner/gated"), ("dataset", "owner/set"))
    ]
    assert record["model"]["revision"] == commits[0]
    assert record["lineage"]["params"]["model"]["name"] == "owner/gated"
    assert record["data"]["source"]["revision"] == commits[1]
    assert done.json["model_version"] == "1"
    assert MEMBER not in done.stderr + json.dumps(record)


@pytest.mark.slow
def test_a_comparison_by_the_papers_protocol(
    run: Run, hub: Hub, model: dict[str, bytes], place: Path
) -> None:
    texts = {name: rows(name) for name in ("train.jsonl", "test.jsonl")}
    llama, wikitext = "meta-llama/Llama-2-7b-hf", "Salesforce/wikitext"
    hub.add("model", llama, model, gated=True, members={MEMBER})
    hub.add("dataset", wikitext, texts | {"README.md": WIKITEXT.encode()})
    values = {
        "calibration.samples": 4,
        "calibration.seq_len": 16,
        "evaluate.seq_len": 16,
        "evaluate.out_of_domain": "novel.txt",
        "evaluate.tasks": "[blimp_passive_1]",
        "evaluate.task_data": str(ROOT / "data" / "tasks"),
        "evaluate.limit": 2,
    }
    given = [f"--set={key}={value}" for key, value in values.items()]
    asked = ["--preset", "paper", "--methods", "shortgpt,sleb", "--json", *given]
    status, said = run("flows.cli", "compare", *asked, cwd=place, HF_TOKEN=MEMBER)
    assert status == 0, said
    table = (place / "build" / "compare" / "table.csv").read_text()
    assert "shortgpt" in table
    assert "sleb" in table
    assert MEMBER not in said + table
