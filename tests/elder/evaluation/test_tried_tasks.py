"""What of tasks is found out before any work: answers too long, items without any, tokens that are missing."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.errors import UserError
from elder.evaluation.tasks import run_tasks, try_tasks
from elder.model.load import Loaded


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """Return a folder with a task that generates, one whose answers fill the context, one that fails when it is run."""
    (tmp_path / "items.jsonl").write_text('{"text": "It was"}\n{"text": "She said"}\n')
    for name, wanted in (
        ("brief", "max_gen_toks: 8"),
        ("long", "max_gen_toks: 128"),
        ("broken", "max_gen_toks: 8, do_sample: true, temperature: -1"),
    ):
        definition = f"""
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: items.jsonl}}}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{text}}}}"
generation_kwargs: {{until: ["."], {wanted}}}
metric_list: [{{metric: exact_match}}]
"""
        (tmp_path / f"{name}.yaml").write_text(definition)
    return tmp_path


def test_tasks_that_fail_are_named_before_any_is_run(
    loaded: Loaded, own_tasks: Path
) -> None:
    assert run_tasks(loaded, ["brief"], own_tasks, None, 8)["brief"].value == 0
    with pytest.raises(
        UserError, match=r"'long' lets a model write 128 tokens .* context has 64:"
    ):
        try_tasks(loaded, ["brief", "long"], own_tasks, None, 8)
    with pytest.raises(
        UserError, match="the tasks broken cannot be run .* ValueError: "
    ):
        try_tasks(loaded, ["brief", "broken"], own_tasks, None, 8)


def test_an_item_without_answers_is_named_before_any_work(
    loaded: Loaded, tmp_path: Path
) -> None:
    items = [{"text": "It was", "answers": ["so", "not"]}] * 3
    items.append({"text": "It was", "answers": []})
    lines = "\n".join(map(json.dumps, items))
    (tmp_path / "items.jsonl").write_text(lines)
    (tmp_path / "choose.yaml").write_text("""
task: choose
dataset_path: json
dataset_kwargs: {data_files: {validation: items.jsonl}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{answers}}"
doc_to_target: 0
metric_list: [{metric: acc}]
""")
    with pytest.raises(UserError, match="item 3 of the task 'choose' has no answers"):
        try_tasks(loaded, ["choose"], tmp_path, None, 8)
    try_tasks(loaded, ["choose"], tmp_path, 3, 8)


def test_a_tokenizer_without_an_end_of_text_is_named(
    loaded: Loaded, own_tasks: Path
) -> None:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.eos_token = None
    endless = replace(loaded, tokenizer=tokenizer)
    with pytest.raises(UserError, match="has no end-of-text token.* the tasks brief"):
        run_tasks(endless, ["brief"], own_tasks, None, 8)


def test_evaluate_tries_tasks_before_it_reads_the_text(
    here: Path, model_folder: Path, own_tasks: Path
) -> None:
    given = f"evaluate {model_folder} --text missing.txt --tasks brief,long"
    done = CliRunner().invoke(
        build_app(LIBRARY), [*given.split(), "--task-data", str(own_tasks)]
    )
    assert done.exit_code == 2
    assert "the task 'long' lets a model write 128 tokens" in done.output
