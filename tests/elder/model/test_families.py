"""The sweep over model families: every one of them loses two of six layers, and nobody can tell from outside."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from elder import params
from elder.compression.layers import layers_to_keep, select_layers
from elder.errors import UserError
from elder.model.layers import (
    LayerControl,
    check_removal,
    find_layers,
    fixed_layers,
    remove_layers,
    skipping,
    text_config,
)
from elder.model.load import Loaded
from elder.model.removal import outline, shortened_fields
from elder.selection import METHODS, Problem, Selection, get_method
from tests.elder.families import COMMONLY, COUNT, FULL, GONE, KEPT, logits
from tests.elder.families_others import FAMILIES, PARTLY, REFUSED

DOCS = Path(__file__).parents[3] / "docs" / "families.md"
UNMERGEABLE = {
    "qwen3-moe-every-2nd",
    "bamba",
}  # no two neighbours have weights of the same shapes
QUICK = {
    "elder": {"epochs": 1, "batch": 1, "lambda1": 0.005},
    "elder-authors": {"epochs": 1, "batch": 1, "first": 1, "last": 1},
}
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
# Runs where this project cannot be imported: loads every folder, and writes what it found beside it.
READER = """
import sys
sys.modules.update(dict.fromkeys(("elder", "tasks", "flows")))
import json, torch, transformers
from pathlib import Path
from safetensors.torch import load_file, save_file
transformers.utils.logging.set_verbosity_error()
for folder in sorted(Path(sys.argv[1]).iterdir()):
    options = {"dtype": "auto", "output_loading_info": True}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    ids = load_file(folder / "ids.st")["ids"]
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, use_cache=False).logits
        tokens = model.generate(ids[:1, :9], use_cache=True, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    save_file({"logits": logits, "tokens": tokens}, folder / "found.st")
    found = {
        "lacking": sorted(info["missing_keys"]) + sorted(info["unexpected_keys"]),
        "dtype": str(model.dtype),
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "repetition_penalty": model.generation_config.repetition_penalty,
    }
    (folder / "found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def dense(name: str) -> Any:
    return FAMILIES[name].build()


@pytest.fixture
def model(dense: Any) -> Any:
    return copy.deepcopy(dense)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(5, 290, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, ids: torch.Tensor) -> Path:
    """Every family in bfloat16, with a generation config of its own, two layers removed; read by another process."""
    root, dense = tmp_path_factory.mktemp("families"), tmp_path_factory.mktemp("dense")
    for name, family in FAMILIES.items():
        # that turns rotary frequencies, too, which loading
        family.build().to(torch.bfloat16).save_pretrained(dense)
        # keeps in float32
        model = AutoModelForCausalLM.from_pretrained(dense, dtype="auto")
        model.generation_config.repetition_penalty = 1.25
        remove_layers(model, GONE)
        model.save_pretrained(root / name)
        tokens = model.generate(ids[:1, :9], use_cache=True, **GREEDY)
        save_file({"ids": ids}, root / name / "ids.st")
        save_file(
            {"logits": logits(model, ids), "tokens": tokens}, root / name / "said.st"
        )
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", READER, str(root)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root.parent, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def test_removing_nothing_changes_nothing(model: Any, ids: torch.Tensor) -> None:
    before, config = logits(model, ids), model.config.to_dict()
    remove_layers(model, [])
    assert torch.equal(logits(model, ids), before)
    assert model.config.to_dict() == config


def test_removing_equals_skipping(model: Any, ids: torch.Tensor) -> None:
    whole = logits(model, ids)
    with skipping(model, GONE):
        skipped = logits(model, ids)
    assert torch.equal(logits(model, ids), whole)
    assert fixed_layers(model, 2) == {}
    remove_layers(model, GONE)
    assert torch.equal(logits(model, ids), skipped)
    assert (skipped - whole).abs().max() > 0.1  # the layers did matter


def test_generation_with_the_cache_equals_generation_without(
    model: Any, ids: torch.Tensor
) -> None:
    remove_layers(model, GONE)
    options: dict[str, Any] = {
        "max_new_tokens": 16,
        "min_new_tokens": 16,
        "do_sample": False,
    }
    cached = model.generate(ids[:1, :9], use_cache=True, **options)
    assert cached.shape == (1, 25)
    assert torch.equal(cached, model.generate(ids[:1, :9], use_cache=False, **options))


def test_another_process_reads_the_same_model(
    name: str, dense: Any, saved: Path
) -> None:
    said, read = (
        load_file(saved / name / "said.st"),
        load_file(saved / name / "found.st"),
    )
    assert torch.equal(read["logits"], said["logits"])
    assert torch.equal(read["tokens"], said["tokens"])
    found = json.loads((saved / name / "found.json").read_text())
    assert found["lacking"] == []
    assert found["dtype"] == "torch.bfloat16"
    assert found["repetition_penalty"] == 1.25
    assert found["tied"] == (
        dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    )


def test_the_saved_configuration_says_what_is_left(
    name: str, dense: Any, saved: Path
) -> None:
    config = json.loads((saved / name / "config.json").read_text())
    for key, value in FAMILIES[name].says.items():
        assert config[key] == value, key
    count = next(
        k
        for k in ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        if k in config
    )
    assert config[count] == len(KEPT)
    for key, old in vars(text_config(dense)).items():
        if isinstance(old, list) and len(old) == COUNT and isinstance(old[0], str):
            assert config[key] == [old[index] for index in KEPT], key
    assert contradictions(config, len(KEPT)) == []


def contradictions(config: dict[str, Any], count: int) -> list[str]:
    """Return the fields of a saved configuration that tell another reader something else than its lists do."""
    found = [
        k
        for k, v in config.items()
        if k.endswith(("layer_types", "rope_layers")) and len(v) != count
    ]
    full = [kind == FULL for kind in config.get("layer_types") or []]
    for key in (
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "global_attn_every_n_layers",
    ):
        spacing = config.get(key)
        if isinstance(spacing, str):
            marks = [spacing[i % len(spacing)] == "G" for i in range(count)]
        elif spacing:
            marks = [(i + 1) % spacing == 0 for i in range(count)]
        else:  # 0: no spacing
            continue
        found += [key] if marks != full else []
    if spacing := config.get("no_rope_layer_interval"):
        by_spacing = [int((i + 1) % spacing != 0) for i in range(count)]
        found += (
            ["no_rope_layer_interval"] if by_spacing != config["no_rope_layers"] else []
        )
    if config.get("use_sliding_window") and "max_window_layers" in config:
        found += (
            ["max_window_layers"]
            if full != [i < config["max_window_layers"] for i in range(count)]
            else []
        )
    return found


@pytest.mark.parametrize(
    "name",
    [name for name, family in FAMILIES.items() if family.says and name != "llama4"],
)
def test_any_one_or_two_layers_can_go_without_contradiction(name: str) -> None:
    model = FAMILIES[name].build()
    for gone in [*combinations(range(COUNT), 1), *combinations(range(COUNT), 2)]:
        check_removal(model, gone)
        kept = [index for index in range(COUNT) if index not in gone]
        config = text_config(model).to_dict() | shortened_fields(
            text_config(model), kept, COUNT
        )
        assert contradictions(config, len(kept)) == [], gone


def test_weights_in_either_place_steer_every_family(
    model: Any, ids: torch.Tensor
) -> None:
    whole = logits(model, ids)
    with skipping(model, GONE):
        skipped = logits(model, ids)
    with LayerControl(find_layers(model)) as control:
        control.weights, control.place = torch.ones(COUNT), "output"
        assert torch.equal(logits(model, ids), whole)
        control.place = "residual"
        # h + (f(h) - h) is f(h) but for rounding
        assert (logits(model, ids) - whole).abs().max() < 1e-3
        control.weights = torch.ones(COUNT).index_fill(0, torch.tensor(GONE), 0)
        assert (logits(model, ids) - skipped).abs().max() < 1e-3
        control.place = "output"
        # a layer that puts out 0 is not a layer that is gone
        assert (logits(model, ids) - skipped).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name", [*COMMONLY, "gpt-1", "bamba"]
)  # whose layers return lists and pairs
def test_every_method_runs_on_every_family(name: str, ids: torch.Tensor) -> None:
    model = FAMILIES[name].build()
    before = copy.deepcopy(model.state_dict())
    for method in METHODS:
        settings = METHODS[method].settings(**QUICK.get(method, {}))
        problem = Problem(
            model, ids[:, :8], 2, frozenset(), settings, seed=0, forward_batch=8
        )
        if method == "laco" and name in UNMERGEABLE:
            with pytest.raises(UserError, match="laco cannot take out 2 of 6 layers"):
                get_method(method)(problem)
            continue
        chosen = get_method(method)(problem)
        assert len(set(chosen.removed)) == 2, method
        assert set(chosen.removed) <= set(range(COUNT)), method
        assert all(
            torch.equal(value, before[key]) for key, value in model.state_dict().items()
        ), method
        check_removal(model, chosen.removed)


@pytest.mark.parametrize(
    ("name", "wanted", "fixed"),
    [
        ("gpt2-inverse", 2, [0, 1, 2, 3]),  # only the end can go
        ("diffllama", 1, [0, 1, 2, 3, 4]),
        ("jamba", 1, [0, 1, 2, 3, 4]),
        ("jamba", 2, [0, 1, 2]),  # m a m m a m without 3 and 4 is m a m m
        ("jamba", 3, []),  # without any three neighbours it is m a m
    ],
)
def test_layers_that_cannot_go_are_known_beforehand(
    name: str, wanted: int, fixed: list[int]
) -> None:
    assert list(fixed_layers(PARTLY[name].build(), wanted)) == fixed


@pytest.mark.parametrize("name", PARTLY)
def test_what_a_configuration_cannot_say_is_refused_and_left_alone(
    name: str, ids: torch.Tensor
) -> None:
    model = PARTLY[name].build()
    before, config = logits(model, ids), model.config.to_dict()
    with pytest.raises(
        UserError,
        match=r"cannot say that layers \[1\] are gone: layer 2 cannot move, since its",
    ):
        remove_layers(model, [1])
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, ids), before)


def test_too_few_removable_layers_are_refused_before_the_choice(
    ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(PARTLY["gpt2-inverse"].build(), None, "tiny", None, torch.float32)
    settings = params.Params(
        select=params.Select(method="random", layers=2, protect=(5,))
    )
    never = replace(
        METHODS["random"], function=lambda _: pytest.fail("a selection began")
    )
    monkeypatch.setitem(METHODS.entries, "random", never)
    with pytest.raises(
        UserError,
        match=r"2 of 6 layers cannot go, only 1 may: .* cannot say that layers \[0\] are gone",
    ):
        select_layers(loaded, ids, settings)
    with pytest.raises(UserError, match="only 1 may"):
        layers_to_keep(outline(loaded.model.config), settings.select)


def test_layers_that_cannot_go_are_not_offered(
    ids: torch.Tensor, capsys: pytest.CaptureFixture
) -> None:
    loaded = Loaded(PARTLY["gpt2-inverse"].build(), None, "tiny", None, torch.float32)
    settings = params.Params(select=params.Select(method="random", layers=2))
    assert sorted(select_layers(loaded, ids, settings).removed) == [4, 5]
    assert "layers [0, 1, 2, 3] are not offered for removal" in capsys.readouterr().err


def test_a_choice_that_cannot_be_said_is_refused_right_after_it(
    ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(PARTLY["jamba"].build(), None, "tiny", None, torch.float32)
    settings = params.Params(select=params.Select(method="random", layers=3))
    chance = replace(
        METHODS["random"], function=lambda _: Selection((1, 3, 5), "chance", ())
    )
    monkeypatch.setitem(METHODS.entries, "random", chance)
    with pytest.raises(
        UserError,
        match=r"cannot say that layers \[1, 3, 5\] are gone: .*; protect some of these",
    ):
        select_layers(loaded, ids, settings)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_work_is_refused_with_the_reason(name: str) -> None:
    family, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason):
        find_layers(family.build())


def test_the_docs_list_every_family() -> None:
    rows = [
        line.split("|")[1:4]
        for line in DOCS.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    listed = {
        family.strip(): status.strip()
        for family, status, _ in rows[1:]
        if not family.startswith(" ---")
    }
    expected = {family.family: "works" for family in FAMILIES.values()}
    expected |= {
        family.family: expected.get(family.family, "in part")
        for family in PARTLY.values()
    }
    expected |= {family.family: "refused" for family, _ in REFUSED.values()}
    expected["T5, BART and other encoder-decoders"] = "refused"
    assert listed == expected
