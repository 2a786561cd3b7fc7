"""Built-in tasks of lm-eval on plain local files: the same prompts and metrics, and no network."""

import json
import math
from pathlib import Path

import pytest
import torch

from elder.errors import UserError
from elder.evaluation.tasks import run_tasks
from elder.model.load import Loaded


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))


QUESTIONS = [
    {
        "question": f"What is {n}?",
        "choices": {
            "text": ["A name", "Nothing", "A number"],
            "label": ["A", "B", "C"],
        },
        "answerKey": "ABC"[n % 3],
    }
    for n in range(4)
]


def score(loaded: Loaded, context: str, answer: str) -> float:
    """Return the log-probability of an answer after a context."""
    before, after = (loaded.tokenizer(text)["input_ids"] for text in (context, answer))
    ids = torch.tensor([before + after])
    with torch.no_grad():
        logs = loaded.model(ids).logits[0, :-1].log_softmax(-1)
    return float(logs.gather(1, ids[0, 1:, None])[len(before) - 1 :].sum())


def test_one_file_named_like_the_task_and_the_split_is_enough(
    loaded: Loaded, tmp_path: Path
) -> None:
    write(tmp_path / "arc_easy" / "test.jsonl", QUESTIONS)
    found = run_tasks(loaded, ["arc_easy"], tmp_path, None, 4)["arc_easy"]
    right = 0
    for row in QUESTIONS:  # lm-eval's own prompt for this task
        scores = [
            score(loaded, f"Question: {row['question']}\nAnswer:", f" {a}")
            for a in row["choices"]["text"]
        ]
        right += scores.index(max(scores)) == "ABC".index(row["answerKey"])
    assert found.value == pytest.approx(right / 4)
    assert found.stderr == pytest.approx(math.sqrt(right / 4 * (1 - right / 4) / 3))
    assert (found.metric, found.version) == ("acc", 1.0)


def test_prompts_made_by_code_and_tags_and_single_split_datasets_work_too(
    loaded: Loaded, tmp_path: Path
) -> None:
    sentence = {
        "sentence": "Ann met Eve since _ asked.",
        "option1": "Ann",
        "option2": "Eve",
        "answer": "1",
    }
    write(tmp_path / "winogrande" / "validation.jsonl", [sentence] * 2)
    write(tmp_path / "arc_easy" / "test.jsonl", QUESTIONS)
    write(tmp_path / "arc_challenge" / "test.jsonl", QUESTIONS)
    pair = {"sentence_good": "She sees it.", "sentence_bad": "She see it."}
    write(tmp_path / "blimp" / "causative.jsonl", [pair] * 3)
    found = run_tasks(
        loaded, ["winogrande", "ai2_arc", "blimp_causative"], tmp_path, None, 4
    )
    assert set(found) == {"winogrande", "arc_easy", "arc_challenge", "blimp_causative"}
    assert found["arc_easy"].value == found["arc_challenge"].value
    assert {found[name].value for name in ("winogrande", "blimp_causative")} <= {
        0.0,
        1.0,
    }  # copies of one item


def test_a_folder_without_the_split_that_counts_is_refused(
    loaded: Loaded, tmp_path: Path
) -> None:
    write(tmp_path / "arc_easy" / "validation.jsonl", QUESTIONS)
    with pytest.raises(
        UserError,
        match=r"has no test.jsonl, the split that the task 'arc_easy' is evaluated on",
    ):
        run_tasks(loaded, ["arc_easy"], tmp_path, None, 4)
