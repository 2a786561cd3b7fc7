"""The files in data/: complete, as their README says, disjoint, and loadable by lm-evaluation-harness from anywhere."""

import contextlib
import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml

from elder.evaluation.task_index import load_tasks
from elder.settings import load_params

DATA = Path(__file__).parents[2] / "data"
PARADIGMS = sorted((DATA / "tasks" / "blimp").glob("*.jsonl"))


@pytest.mark.parametrize("place", [DATA, DATA / "general"], ids=["novels", "general"])
def test_readme_lists_every_file_with_its_size_and_digest(place):
    listed = re.findall(
        r"\| `([\w./]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|",
        (place / "README.md").read_text(),
    )
    files = [
        path
        for path in [*place.glob("*.txt"), *place.glob("tasks/**/*")]
        if path.is_file()
    ]
    assert {name for name, _, _ in listed} == {
        path.relative_to(place).as_posix() for path in files
    }
    for name, size, digest in listed:
        content = (place / name).read_bytes()
        assert len(content) == int(size.replace(",", ""))
        assert hashlib.sha256(content).hexdigest() == digest, name


@pytest.mark.parametrize(
    "names",
    [
        ("calibration", "in_domain", "held_out"),
        ("general/calibration", "general/in_domain", "held_out"),
    ],
)
def test_texts_share_no_sentence(names):
    lines = [
        {
            line
            for line in (DATA / f"{name}.txt").read_text(encoding="utf-8").splitlines()
            if len(line) > 60
        }
        for name in names
    ]
    assert all(len(part) > 200 for part in lines)
    assert len(set.union(*lines)) == sum(map(len, lines))


def test_the_preset_of_make_real_finds_its_texts_and_task_items(monkeypatch):
    """And it leaves the recipe and the gate as they are by default."""
    monkeypatch.chdir(DATA.parent)
    given = yaml.safe_load(Path("presets/smollm2.yaml").read_text())
    assert not {"regularise", "compensate", "recover", "gate"} & set(given)
    settings = load_params(Path("presets/smollm2.yaml"))
    assert Path(settings.calibration.source).is_file()
    chosen = settings.evaluate
    assert Path(chosen.in_domain).is_file()
    assert Path(chosen.out_of_domain).is_file()
    with contextlib.chdir(chosen.task_data):
        tasks = load_tasks(list(chosen.tasks), Path.cwd())["tasks"]
    assert sorted(tasks) == sorted(chosen.tasks)
    assert {len(list(task.eval_docs)) for task in tasks.values()} == {100}


def test_at_least_twelve_paradigms():
    assert len(PARADIGMS) >= 12


@pytest.mark.parametrize("path", PARADIGMS, ids=lambda path: path.stem)
def test_paradigm_has_a_hundred_pairs_that_differ(path):
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({pair["pairID"] for pair in pairs}) == len(pairs) == 100
    assert all(
        pair["sentence_good"].strip() and pair["sentence_bad"].strip() for pair in pairs
    )
    assert all(pair["sentence_good"] != pair["sentence_bad"] for pair in pairs)


def test_group_loads_from_any_working_directory(tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager, get_task_dict

    monkeypatch.chdir(tmp_path)
    with contextlib.chdir(DATA / "tasks"):  # data_files are relative to this folder
        manager = TaskManager(include_path=str(DATA / "tasks"), include_defaults=False)
        assert manager.all_groups == ["blimp"]
        assert sorted(manager.all_subtasks) == [
            f"blimp_{path.stem}" for path in PARADIGMS
        ]
        ((group, members),) = get_task_dict(["blimp"], manager).items()
    assert group.group == "blimp"
    assert sorted(members) == [f"blimp_{path.stem}" for path in PARADIGMS]
    task = members["blimp_passive_1"]
    document = next(iter(task.test_docs()))
    assert task.doc_to_choice(document) == [
        document["sentence_good"],
        document["sentence_bad"],
    ]
    assert task.doc_to_target(document) == 0
