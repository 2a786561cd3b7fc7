"""Layers that lie on the CPU or in their files: the same numbers to the bit, and the weights of one layer at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast
from typer.testing import Result

from elder.compression.choice import refuse_offload
from elder.compression.job import open_job
from elder.compression.stages import STAGES
from elder.device import device_of_model
from elder.errors import UserError
from elder.model import offload as module
from elder.model.forward import block_losses, logits_of, next_token_losses, run_layers
from elder.model.layers import LayerControl, find_layers, skipping
from elder.model.load import Loaded, load_model, parameter_count, weights_digest
from elder.parallel.launch import wanted_processes
from elder.params import Model, Select
from elder.selection import METHODS, run_method
from elder.settings import validate
from tests.elder.conftest import MakeLlama
from tests.elder.families import COMMONLY
from tests.elder.selection.problems import quick_problem

RUNNING = [name for name, entry in METHODS.items() if entry.divided]
CPU = torch.device("cpu")
Pairs = dict[str, tuple[Loaded, Loaded]]


def loaded(folder: Path, offload: Any = "disk", **wanted: Any) -> Loaded:
    return load_model(Model(name=str(folder), device="cpu", **wanted), offload=offload)


@pytest.fixture(scope="module")
def folders(
    llama: MakeLlama,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Save a LLaMA of six layers, and a Gemma 2, whose head is tied and caps its logits."""
    models = {"llama": llama(6), "gemma2": COMMONLY["gemma2"].build()}
    found = {}
    for name, model in models.items():
        found[name] = tmp_path_factory.mktemp("models") / name
        model.save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> Pairs:
    """Return each of them whole, and with its layers on the disk."""
    return {
        name: (loaded(folder, "none"), loaded(folder))
        for name, folder in folders.items()
    }


class Watch(Mapping[str, torch.Tensor]):
    """The weights of a layer, which remembers what of all that was read still lives."""

    alive: list[tuple[StorageWeakRef, int]] = []
    peak = reads = 0

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.weights = weights

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.weights[name].clone()  # in memory of its own
        kind = type(self)
        kind.reads += 1
        kind.alive.append((StorageWeakRef(tensor.untyped_storage()), tensor.nbytes))
        kind.peak = max(kind.peak, kind.living())
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    @classmethod
    def living(cls) -> int:
        cls.alive = [one for one in cls.alive if not one[0].expired()]
        return sum(size for _, size in cls.alive)


@pytest.fixture
def watched(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the LLaMA, its layers on the disk, with an eye on what of them is in memory."""
    model = pairs["llama"][1].model
    for layer in find_layers(model):
        hook = layer._hf_hook
        monkeypatch.setattr(hook, "weights_map", Watch(hook.weights_map))
    Watch.alive, Watch.peak, Watch.reads = [], 0, 0
    return model


def layer_bytes(model: Any) -> int:
    return sum(one.nbytes for one in find_layers(model)[0].parameters())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_what_is_known_of_a_model_is_the_same_without_its_layers(
    pairs: Pairs, family: str
) -> None:
    whole, without = pairs[family]
    held = [one for one in without.model.parameters() if not one.is_meta]
    assert sum(one.numel() for one in held) < parameter_count(whole.model) / 2
    assert all(one.is_meta for one in find_layers(without.model).parameters())
    assert weights_digest(without.model) == weights_digest(whole.model)
    assert parameter_count(without.model) == parameter_count(whole.model)
    assert (without.dtype, without.num_layers) == (whole.dtype, whole.num_layers)
    assert device_of_model(without.model) == CPU


def test_a_dtype_that_was_asked_for_is_that_of_the_layers(
    folders: dict[str, Path], blocks: torch.Tensor
) -> None:
    whole, without = (
        loaded(folders["llama"], way, dtype="bfloat16") for way in ("none", "disk")
    )
    assert weights_digest(without.model) == weights_digest(whole.model)
    expected, found = (block_losses(one.model, blocks, 4) for one in (whole, without))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", RUNNING)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_method_that_only_runs_the_model_chooses_by_the_same_scores(
    pairs: Pairs, blocks: torch.Tensor, family: str, method: str
) -> None:
    more = {"shortlist": 2} if method == "elder" else {}
    whole, without = (
        run_method(method, quick_problem(one.model, blocks, method=method, **more))
        for one in pairs[family]
    )
    assert without == whole  # layers, scores and trials, to the bit
    assert len(without.removed) == 2


def test_layers_left_on_the_cpu_run_as_ever(
    folders: dict[str, Path], pairs: Pairs, blocks: torch.Tensor
) -> None:
    whole = pairs["gemma2"][0].model
    without = loaded(folders["gemma2"], "none").model
    before = [one.data_ptr() for one in find_layers(without).parameters()]
    module._leave_on_cpu(without, CPU)
    assert without.lm_head.weight is without.get_input_embeddings().weight
    assert weights_digest(without) == weights_digest(whole)
    assert torch.equal(logits_of(without, blocks), logits_of(whole, blocks))
    lying = [
        one.data_ptr()
        for layer in find_layers(without)
        for one in layer._hf_hook.weights_map.values()
    ]
    assert lying == before  # nothing was copied


def test_on_a_cpu_the_cpu_is_no_other_place(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = loaded(folders["llama"], "cpu").model
    assert not any(one.is_meta for one in model.parameters())
    assert "all weights are there anyway" in capsys.readouterr().err


def test_no_more_than_one_layer_is_in_memory(
    watched: Any, blocks: torch.Tensor
) -> None:
    one = layer_bytes(watched)
    assert parameter_count(find_layers(watched)) * 4 == 6 * one
    block_losses(watched, blocks, batch=4)
    assert Watch.peak == one
    assert Watch.living() == 0
    run_layers(watched, blocks[:2], last=2)
    assert Watch.living() == 0


def test_the_backward_pass_holds_no_more_either(
    watched: Any, pairs: Pairs, blocks: torch.Tensor
) -> None:
    """Each layer is read once more there; the graph would hold all six of them otherwise."""

    def slopes(model: Any) -> torch.Tensor:
        weights = torch.ones(6, requires_grad=True)
        with LayerControl(find_layers(model)) as control:
            control.weights = weights
            loss = next_token_losses(model, blocks).mean()
        return torch.autograd.grad(loss, weights)[0]

    found = slopes(watched)
    tensors = len(list(find_layers(watched)[0].parameters()))
    # what enters the first layer has no gradient, so that it is not run again
    assert Watch.reads == (6 + 5) * tensors
    assert layer_bytes(watched) <= Watch.peak < 2 * layer_bytes(watched)
    assert Watch.living() == 0
    assert torch.equal(found, slopes(pairs["llama"][0].model))


def test_a_layer_that_is_skipped_is_not_read(
    watched: Any, blocks: torch.Tensor
) -> None:
    with skipping(watched, [1, 4]):
        logits_of(watched, blocks)  # how a layer's output looks is seen by running one
        Watch.reads = 0
        logits_of(watched, blocks)
    assert Watch.reads == 4 * len(list(find_layers(watched)[0].parameters()))


def test_a_pass_that_is_broken_off_leaves_no_weights(
    watched: Any, blocks: torch.Tensor
) -> None:
    layer = find_layers(watched)[3]
    hook = layer.mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits_of(watched, blocks)
    hook.remove()
    assert Watch.living() == 0
    assert all(one.is_meta for one in layer.parameters())


def test_a_broken_weight_is_seen_in_its_file(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tensors = load_file(folders["llama"] / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][1, 2] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    tokenizer.save_pretrained(tmp_path)
    config = (folders["llama"] / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    sentence = r"model\.layers\.3\.mlp\.up_proj\.weight of .* holds nan or infinite"
    with pytest.raises(UserError, match=sentence):
        loaded(tmp_path)


def test_what_needs_all_weights_in_memory_is_refused(
    folders: dict[str, Path],
    llama: MakeLlama,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    adapter = get_peft_model(llama(6), LoraConfig(target_modules=["q_proj"]))
    adapter.peft_config["default"].base_model_name_or_path = str(folders["llama"])
    adapter.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="an adapter is merged into .*offload to none"):
        loaded(tmp_path / "adapter", adapter="merge")
    shape = MixtralConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    MixtralForCausalLM(shape).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    with pytest.raises(UserError, match=r"in another form; set select\.offload to cpu"):
        loaded(tmp_path / "experts")


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(RUNNING)))
def test_a_choice_that_looks_into_weights_is_refused_before_any_work(
    method: str,
) -> None:
    refuse_offload(Select(method=method))
    with pytest.raises(UserError, match=rf"disk, and select\.method {method} looks"):
        refuse_offload(Select(method=method, offload="disk"))


def test_what_else_does_not_go_with_it_is_refused_before_any_work() -> None:
    chosen = Select(method="shortgpt", offload="disk")
    refuse_offload(chosen, "merge")
    with pytest.raises(UserError, match=r"and compensate\.method flatten looks"):
        refuse_offload(chosen, "flatten")
    several = {"launch": {"processes": 2}, "select": {"offload": "disk"}}
    with pytest.raises(UserError, match="set the processes to 1, or the offload"):
        wanted_processes(validate(several))


def test_a_stage_finds_the_same_in_a_work_folder_that_is_the_same(
    model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    found = {}
    for offload in ("none", "disk"):
        settings = validate(
            {
                "model": {"name": str(model_folder), "device": "cpu"},
                "calibration": {"samples": 8, "seq_len": 32},
                "select": {"method": "sleb", "layers": 2, "offload": offload},
            }
        )
        with open_job(tmp_path / offload, settings, text_file, STAGES) as job:
            learnt = job.learnt.model_dump(mode="json")
        del learnt["seconds"], learnt["peak_memory_bytes"]
        key = json.loads((tmp_path / offload / "key.json").read_text())
        found[offload] = learnt, key
    assert found["disk"] == found["none"]


def test_the_command_says_the_same(elder: Callable[..., Result]) -> None:
    found = []
    for more in ((), ("--set", "select.offload=disk")):
        done = elder("select", "--method", "shortgpt", "--json", *more)
        assert done.exit_code == 0, done.output
        found.append(json.loads(done.stdout))
    for one in found:
        del one["seconds"], one["peak_memory_bytes"]
    assert found[0] == found[1]
    done = elder("select", "--method", "laco", "--set", "select.offload=disk")
    assert done.exit_code == 2
    assert "select.method laco looks into the weights" in " ".join(done.stderr.split())
