"""Adapters: refused where nobody asked for them, merged into the model beside them or into their base, or left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM
from typer.testing import Result

from elder.errors import UserError
from elder.model.check import check_model
from elder.model.load import load_model
from elder.params import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def tuned(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return an adapter's folder, and the weights of the model that it is merged into."""
    base = LlamaForCausalLM.from_pretrained(model_folder)
    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(base, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("adapters") / "tuned"
    adapted.save_pretrained(folder)
    return folder, adapted.merge_and_unload().state_dict()


@pytest.fixture
def beside(model_folder: Path, tuned: Any, tmp_path: Path) -> Path:
    """Return a whole model's folder with the adapter beside it."""
    folder = tmp_path / "beside"
    shutil.copytree(model_folder, folder)
    for name in (CONFIG, WEIGHTS):
        shutil.copy(tuned[0] / name, folder)
    return folder


def weights_of(folder: Path, adapter: str) -> dict[str, torch.Tensor]:
    wanted = Model(name=str(folder), adapter=adapter, device="cpu")
    return load_model(wanted).model.state_dict()


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    assert some.keys() == others.keys()
    return all(torch.allclose(some[key], others[key], atol=1e-6) for key in some)


def test_an_adapter_beside_a_model_is_used_as_asked(
    beside: Path, tuned: Any, trained_model: LlamaForCausalLM
) -> None:
    sentence = "holds an adapter beside the weights of a whole model; add --set model.adapter=ignore to .*=merge$"
    with pytest.raises(UserError, match=sentence):
        check_model(str(beside), Model(name=str(beside)))
    assert equal(weights_of(beside, "ignore"), trained_model.state_dict())
    merged = weights_of(beside, "merge")
    assert equal(merged, tuned[1])
    assert not equal(merged, trained_model.state_dict())


def test_an_adapter_alone_is_merged_if_asked(
    tuned: Any, elder: Callable[..., Result]
) -> None:
    folder, expected = tuned
    for adapter in ("refuse", "ignore"):
        wanted = Model(name=str(folder), adapter=adapter)
        with pytest.raises(
            UserError, match="is an adapter of '.*tiny' and no whole .*adapter=merge to"
        ):
            check_model(str(folder), wanted)
    assert equal(weights_of(folder, "merge"), expected)
    done = elder(
        *("compress", "--method", "shortgpt", "--recover", "none"),
        *("--set", "model.adapter=merge"),
        model=folder,
    )
    assert done.exit_code == 0, done.output
    assert "is merged into" in done.stderr
    made = LlamaForCausalLM.from_pretrained("out").state_dict()
    name = "embed_tokens.weight"
    assert torch.equal(made[f"model.{name}"], expected[f"model.{name}"])
    first = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(made[first], expected[first], atol=1e-6)


def renamed(folder: Path, base: str | None) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["base_model_name_or_path"] = base
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: renamed(folder, None), "names no base_model_name_or_path"),
        (
            lambda folder: renamed(folder, "./gone/x"),
            r"is an adapter of './gone/x': there is no model folder",
        ),
        (lambda folder: (folder / WEIGHTS).unlink(), f"has no {WEIGHTS}; save it"),
        (
            lambda folder: (folder / CONFIG).write_text(
                (folder / CONFIG).read_text().replace("down_proj", "up_proj")
            ),
            "does not fit its model, as .*up_proj|down_proj",
        ),
    ],
)
def test_an_adapter_that_cannot_be_merged(
    tuned: Any, tmp_path: Path, change: Callable[[Path], None], sentence: str
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(tuned[0], folder)
    change(folder)
    with pytest.raises(UserError, match=sentence):
        weights_of(folder, "merge")
