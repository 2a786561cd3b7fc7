"""docs/extending.md does what it says: its worked examples are read from the page, imported and run."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from elder.cli.app import build_app
from elder.cli.services import LIBRARY
from elder.compare.rows import parse_rows
from elder.data import choose_blocks
from elder.errors import UserError
from elder.fingerprint import recipe_of
from elder.model.layers import find_layers
from elder.params.catalogue import Catalogue
from elder.recovery import RECOVERIES, student_of
from elder.selection import METHODS
from elder.settings import read_params, validate

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SELECTION, RECOVERY = "elder/selection/norm_ratio.py", "elder/recovery/steady.py"


@contextmanager
def imported(section: str, place: str, catalogue: Catalogue) -> Iterator[str]:
    """Import a section's example as the module that it names; then forget it, so that no other test meets it."""
    code = re.search(rf"## {section}\n.*?```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    assert f"`{place}`" in PAGE
    module = Path(place).stem
    Path(f"{module}.py").write_text(code[1], encoding="utf-8")
    known = set(catalogue)
    importlib.import_module(module)
    (name,) = set(catalogue) - known
    try:
        yield name
    finally:
        del catalogue.entries[name], sys.modules[module]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder that modules are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    # it would hide warnings from the other tests
    monkeypatch.setattr("elder.cli.options.prepare_libraries", lambda: None)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def example(empty_folder: None) -> Iterator[str]:
    with imported("A selection method", SELECTION, METHODS) as name:
        yield name


@pytest.fixture
def recovery(empty_folder: None) -> Iterator[str]:
    with imported("A recovery", RECOVERY, RECOVERIES) as name:
        yield name


def select(model: Path, text: Path, *arguments: str) -> Result:
    given = [
        "select",
        str(model),
        "--calibration",
        str(text),
        "--samples",
        "6",
        "--seq-len",
        "32",
        "--layers",
        "2",
    ]
    return CliRunner().invoke(build_app(LIBRARY), [*given, "--json", *arguments])


@torch.no_grad()
def literal_norm_ratio(
    model: LlamaForCausalLM, blocks: torch.Tensor, order: float = 2
) -> list[float]:
    last: list[torch.Tensor] = []
    hook = find_layers(model)[-1].register_forward_hook(
        lambda _, __, output: last.append(output)
    )
    states = [*model(blocks, output_hidden_states=True).hidden_states[:-1], last[0]]
    hook.remove()
    norms = [
        state.double().abs().pow(order).sum(dim=-1) ** (1 / order) for state in states
    ]
    return [
        (b / a).log().abs().mean().item()
        for a, b in zip(norms[:-1], norms[1:], strict=True)
    ]


def test_the_worked_example_selects(
    example: str,
    model_folder: Path,
    text_file: Path,
    trained: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    done = select(model_folder, text_file, "--method", example)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    blocks = choose_blocks(text_file, tokenizer, 6, 32, 0)
    expected = literal_norm_ratio(trained, blocks)
    assert found["method"] == example == "norm-ratio"
    assert found["scores"]["rounds"][0]["values"] == pytest.approx(expected, abs=1e-5)
    assert found["removed"] == sorted(range(6), key=lambda index: expected[index])[:2]


def test_the_worked_example_has_a_setting_of_its_own(
    example: str,
    model_folder: Path,
    text_file: Path,
    trained: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    first_order = ["--method", example, "--set", f"select.{example}.order=1"]
    done = select(model_folder, text_file, *first_order)
    values = json.loads(done.stdout)["scores"]["rounds"][0]["values"]
    blocks = choose_blocks(text_file, tokenizer, 6, 32, 0)
    assert values == pytest.approx(literal_norm_ratio(trained, blocks, 1), abs=1e-5)
    assert values != pytest.approx(literal_norm_ratio(trained, blocks, 2), abs=1e-5)
    for wrong, sentence in (
        ("order=0", "order = 0: should be greater than 0"),
        ("odrer=1", "odrer: unknown key, did you mean 'order'?"),
    ):
        done = select(model_folder, text_file, "--set", f"select.{example}.{wrong}")
        assert done.exit_code == 2
        assert f"select.{example}.{sentence}" in " ".join(done.stderr.split())


def test_the_worked_example_has_a_recipe_of_its_own(example: str) -> None:
    made = read_params(None, None, {}, example)
    assert (made.select.method, made.compensate.method) == (example, "magnitude")
    assert (made.regularise.epochs, made.recover.mode) == (0, "none")
    assert (
        read_params(None, ["compensate.method=linear"], {}, example).compensate.method
        == "linear"
    )
    (row,) = parse_rows(f"{example}[select.{example}.order=3]")
    settings = row.settings(made)
    assert settings.select.settings_of(example).order == 3.0
    assert settings.compensate.method == "magnitude"
    assert recipe_of(settings)["select"][example] == {"order": 3.0}


def test_the_worked_example_protects_layers_and_is_named_to_who_errs(
    example: str, model_folder: Path, text_file: Path
) -> None:
    done = select(
        model_folder,
        text_file,
        "--method",
        example,
        "--set",
        "select.protect=[1, 2, 3, 4]",
    )
    assert sorted(json.loads(done.stdout)["removed"]) == [0, 5]
    done = select(model_folder, text_file, "--method", "norm-ration")
    assert done.exit_code == 2
    assert f"did you mean '{example}'?" in done.stderr


def test_the_worked_recovery_is_the_loss_that_it_says(
    recovery: str, trained: LlamaForCausalLM, text_blocks: torch.Tensor
) -> None:
    ids = text_blocks[:2]
    with torch.no_grad():
        logits = trained(ids).logits.double()
    sums = logits.exp().sum(dim=-1).log()  # (2, 48)
    wanted = logits[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    next_token = (sums[:, :-1] - wanted).mean().item()
    for z in (0.0, 1e-4, 0.5):
        made = validate({"recover": {"mode": recovery, recovery: {"z": z}}})
        student = student_of(made.recover, trained, None)
        loss = RECOVERIES.find(recovery).function(student)(ids)
        expected = next_token + z * sums.square().mean().item()
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_worked_recovery_is_run_by_its_name_with_its_setting(
    recovery: str, model_folder: Path, text_file: Path
) -> None:
    given = f"--method last --layers 2 --samples 8 --seq-len 32 --recover {recovery}"
    few = "--set recover.epochs=1 --set recover.lr=1e-3 --set regularise.epochs=0"
    asked = [*given.split(), *few.split(), "--set", f"recover.{recovery}.z=1e-3"]
    places = ["--calibration", str(text_file), "--output", "out", "--json"]
    done = CliRunner().invoke(
        build_app(LIBRARY), ["compress", str(model_folder), *asked, *places]
    )
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["recipe"]["recover"]["mode"] == recovery == "steady"
    assert record["recipe"]["recover"][recovery] == {"z": 1e-3}
    assert record["tokens_seen"] == 8 * 32
    with pytest.raises(UserError, match=f"{recovery}.z = -1"):
        validate({"recover": {recovery: {"z": -1}}})


def test_every_place_that_the_page_names_is_there() -> None:
    places = set(
        re.findall(r"`((?:elder|tasks|flows|tests|data|docs)/[\w/.]*)`", PAGE)
    ) - {SELECTION, RECOVERY}
    assert len(places) > 12
    assert [place for place in sorted(places) if not (ROOT / place).exists()] == []
    named = re.findall(r"`(\w+)` (?:of|in) `(elder/[\w/]+\.py)`", PAGE)
    assert len(named) >= 4
    for name, place in named:
        assert re.search(rf"\b{name}\b", (ROOT / place).read_text(encoding="utf-8")), (
            f"{place} has no {name}"
        )
