"""Weights and states that are not finite are refused at once, with the layer, the dtype and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.errors import UserError
from elder.model import head
from elder.model.finite import (
    NotFiniteError,
    all_finite,
    refuse_broken_losses,
    refuse_broken_states,
)
from elder.model.layers import find_layers
from elder.model.save import save_model
from elder.selection import METHODS, Problem, run_method
from elder.selection.base import lowest

WEIGHT = "model.layers.2.mlp.down_proj.weight"
BROKEN_STATE = "the output of layer 2 came out nan or infinite on this text in float16"
CURE = "load it with --dtype float32"
TASKS = Path(__file__).parents[3] / "data" / "tasks"
ANSWERS = """
task: answers
dataset_path: json
dataset_kwargs: {data_files: {test: answers.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 3}
metric_list: [{metric: exact_match}]
metadata: {version: 1.0}
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("elder.cli.options.prepare_libraries", lambda: None)
    monkeypatch.setattr("elder.cli.compare.prepare_libraries", lambda: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def changed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Return a copy of the model folder with one weight changed by a function."""

    def make(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        shutil.copytree(model_folder, folder)
        path = folder / "model.safetensors"
        weights = load_file(path)
        weights[WEIGHT] = change(weights[WEIGHT])
        save_file(weights, path, metadata={"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="module")
def with_nan(changed: Callable) -> Path:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[3, 5] = torch.nan
        return weight

    return changed("with-nan", change)


@pytest.fixture(scope="module")
def too_large_for_float16(changed: Callable) -> Path:
    """Return a model whose weights float16 can hold, but not what layer 2 makes of them."""
    return changed("large", lambda weight: weight * (60_000 / weight.abs().max()))


def run(text: Path, *arguments: str | Path) -> Result:
    words = [str(word) for word in arguments]
    if words[0] != "evaluate":
        words += ["--calibration", str(text), "--samples", "4", "--layers", "2"]
    return CliRunner().invoke(build_app(LIBRARY), [*words, "--seq-len", "32"])


@pytest.mark.parametrize("command", ["select", "compress", "evaluate"])
def test_a_weight_that_is_nan_is_named_before_any_work(
    command: str, with_nan: Path, text_file: Path, tmp_path: Path
) -> None:
    more = {
        "compress": ["--output", "out"],
        "evaluate": ["--text", text_file, "--json"],
    }
    done = run(text_file, command, with_nan, *more.get(command, []))
    assert done.exit_code == 2
    said = " ".join(done.stderr.split())
    assert (
        f"error: weight {WEIGHT} of {str(with_nan)!r} holds nan or infinite values"
        in said
    )
    assert "in float32; use another checkpoint" in said
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_float16_cannot_hold_is_named(
    changed: Callable, text_file: Path
) -> None:
    folder = changed("huge", lambda weight: weight * (1e6 / weight.abs().max()))
    done = run(text_file, "select", folder, "--method", "random", "--dtype", "float16")
    assert done.exit_code == 2
    assert f"weight {WEIGHT}" in done.stderr
    assert f"in float16; {CURE}" in " ".join(done.stderr.split())
    assert run(text_file, "select", folder, "--method", "random").exit_code == 0


@pytest.mark.parametrize(
    "method", ["shortgpt", "sleb", "elder", "shortened-taylor", "last"]
)
def test_a_state_that_float16_cannot_hold_is_named_and_float32_holds_it(
    method: str, too_large_for_float16: Path, text_file: Path
) -> None:
    arguments = ["select", too_large_for_float16, "--method", method]
    done = run(text_file, *arguments, "--dtype", "float16", "--json")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"error: {BROKEN_STATE}; {CURE}" in " ".join(done.stderr.split())
    if method in ("shortgpt", "last"):
        done = run(text_file, *arguments, "--json")
        assert done.exit_code == 0
        assert len(json.loads(done.stdout)["removed"]) == 2


def test_a_perplexity_that_is_nan_names_the_layer(
    too_large_for_float16: Path, text_file: Path
) -> None:
    given = ["evaluate", too_large_for_float16, "--text", text_file]
    done = run(text_file, *given, "--dtype", "float16")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{BROKEN_STATE}; {CURE}" in " ".join(done.stderr.split())


def test_a_task_is_not_scored_by_what_is_nan(
    too_large_for_float16: Path, text_file: Path
) -> None:
    given = ["evaluate", too_large_for_float16, "--tasks", "blimp_passive_1"]
    given += ["--task-data", TASKS, "--limit", "2", "--dtype"]
    done = run(text_file, *given, "float16")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{BROKEN_STATE}; {CURE}" in " ".join(done.stderr.split())
    assert run(text_file, *given, "float32").exit_code == 0


def test_a_written_answer_is_not_scored_where_its_logits_are_nan(
    too_large_for_float16: Path, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "answers.yaml").write_text(ANSWERS)
    row = {"question": "it was", "answer": "the best"}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row))
    given = ["evaluate", too_large_for_float16, "--tasks", "answers"]
    given += ["--task-data", tmp_path, "--dtype"]
    done = run(text_file, *given, "float16")
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"{BROKEN_STATE}; {CURE}" in " ".join(done.stderr.split())
    assert run(text_file, *given, "float32").exit_code == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_refuses_a_state_that_is_nan_in_some_later_block(
    method: str, trained: Any, text_blocks: torch.Tensor
) -> None:
    blocks = text_blocks[::20][:6].clone()
    rare = 0
    assert (blocks[:5] != rare).all()
    blocks[5, :] = rare

    def overflow(
        _: Any, given: tuple[torch.Tensor], states: torch.Tensor
    ) -> torch.Tensor:
        return states.masked_fill((given[0] == rare)[..., None], torch.inf)

    trained.get_input_embeddings().register_forward_hook(overflow)
    few = {"first": 1, "last": 1} if method == "elder-authors" else {}
    settings = METHODS[method].settings(**few)
    problem = Problem(trained, blocks, 2, frozenset(), settings, 0, forward_batch=2)
    if method in ("random", "last"):  # they look at nothing
        run_method(method, problem)
        return
    with pytest.raises(
        NotFiniteError, match="what enters layer 0 came out nan or infinite"
    ):
        run_method(method, problem)


def test_a_score_that_is_not_finite_decides_nothing() -> None:
    for wrong in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(
            UserError, match="the score of layer 2 is .*: nothing can be decided"
        ):
            lowest([None, 2.0, wrong, 1.0, 0.5], 1)
    assert lowest([None, 2.0, 1.0, 0.5], 1) == (3,)


def test_the_first_place_is_named(trained: Any, text_blocks: torch.Tensor) -> None:
    refuse_broken_states(trained, text_blocks[:2])
    losses = torch.tensor([1.0, torch.nan])
    with pytest.raises(NotFiniteError, match="the loss on this text is nan"):
        refuse_broken_losses(trained, text_blocks[:2], losses)
    find_layers(trained)[4].mlp.down_proj.weight.data[0, 0] = torch.nan
    find_layers(trained)[1].self_attn.o_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(
        NotFiniteError, match="the output of layer 1 .* use another checkpoint"
    ):
        refuse_broken_states(trained, text_blocks[:2])


def test_the_logits_are_looked_at_too(trained: Any, text_blocks: torch.Tensor) -> None:
    trained.model.norm.weight.data[0] = torch.nan
    with pytest.raises(
        NotFiniteError, match="the logits, after the last layer, came out nan"
    ):
        refuse_broken_states(trained, text_blocks[:1])


def test_logits_are_looked_at_a_few_at_a_time(
    trained: Any, text_blocks: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "positions_at_once", lambda *_: 8)
    made: list[int] = []
    trained.lm_head.register_forward_hook(lambda *given: made.append(given[2].numel()))
    refuse_broken_states(trained, text_blocks[:2], 2)
    assert max(made) == 8 * 257
    assert sum(made) == text_blocks[:2].numel() * 257


def test_nothing_is_saved_of_a_model_that_is_broken(
    trained: Any, tokenizer: Any, tmp_path: Path
) -> None:
    find_layers(trained)[3].mlp.down_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(
        NotFiniteError, match=r"weight model\.layers\.3\.mlp\.down_proj\.weight of"
    ):
        save_model(trained, tokenizer, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_finite(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.0, -3.0], [0.0, 60_000.0]], dtype=dtype)
    assert all_finite(values)
    assert all_finite(torch.empty(0, dtype=dtype))
    assert all_finite(torch.tensor([1, 2]))
    for wrong in (torch.nan, torch.inf, -torch.inf):
        broken = values.clone()
        broken[1, 0] = wrong
        assert not all_finite(broken)
