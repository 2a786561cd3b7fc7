"""Speed: exact lengths, fair turns, memory worked by hand; and the check that the cache tells the truth."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from elder.errors import UserError
from elder.evaluation.bench import Job, generate
from elder.evaluation.speed import (
    generation_agrees,
    measure,
    measure_side_by_side,
    prompt_length,
)
from elder.model.layers import remove_layers
from elder.model.load import Loaded
from elder.params import Speed
from elder.record import plain

SPEED = Speed(
    prompt_tokens=12,
    prompt_iterations=3,
    batch=2,
    generate_prompt=5,
    new_tokens=4,
    generate_iterations=2,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models on a busy machine spend their time waiting for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(dtype: torch.dtype = torch.float32, layers: int = 2) -> Loaded:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,  # large enough for layers and positions to matter
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()
    return Loaded(model, None, "tiny", None, dtype)


def test_memory_and_parameters_of_one_model_by_hand() -> None:
    result = measure(tiny(), SPEED)
    # embedding and head 128x32 each; a layer: q, o 32x32, k, v 32x16, three 32x48, two norms of 32; one norm at the end
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    parameters = 2 * 128 * 32 + 2 * layer + 32
    assert result.parameters == parameters
    # keys and values of 2 layers, 2 sequences, 2 heads of width 8, 5 + 4 - 1 positions, 4 bytes
    cache = 2 * 2 * 2 * 2 * 8 * 8 * 4
    rotary = 2 * 4 * 4  # two float32 buffers of 4 inverse frequencies
    assert result.peak_memory_bytes == 4 * parameters + cache + rotary
    assert result.tokens_per_second == pytest.approx(2 * 4 / result.generate_ms * 1000)
    assert result.prompt_ms > 0
    assert result.prompt_ms_stdev >= 0


def test_two_models_side_by_side_give_ratios_and_a_protocol_that_is_json() -> None:
    dense, pruned = tiny(), tiny()
    remove_layers(pruned.model, [1])
    result = measure_side_by_side(dense, pruned, SPEED)
    ratio, before, after = result.ratio, result.dense, result.pruned
    assert ratio.parameters == pytest.approx(after.parameters / before.parameters)
    assert ratio.memory == pytest.approx(
        after.peak_memory_bytes / before.peak_memory_bytes
    )
    assert ratio.memory < 1
    assert "activations are not counted" in result.protocol["memory"]
    json.dumps(plain(result), allow_nan=False)


def test_a_machine_that_slows_down_between_turns_does_not_change_the_ratio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Turn by turn 2, 20, 4 and 1, 10, 4: ratios 2, 2, 1. The medians alone, 4 and 4, would say 1.
    monkeypatch.setattr(
        "elder.evaluation.bench.in_turns",
        lambda jobs, *_: time_by_hand(jobs, [2, 20, 4], [1, 10, 4]),
    )
    ratio = measure_side_by_side(tiny(), tiny(), SPEED).ratio
    assert ratio.prompt_speedup == 2
    assert ratio.throughput == 2


def time_by_hand(jobs: list[Job], *times: list[float]) -> None:
    for job, milliseconds in zip(jobs, times, strict=True):
        job.prompt_ms = job.generate_ms = milliseconds
        job.memory = 1


def test_prompts_are_timed_in_turns() -> None:
    dense, pruned, calls = tiny(), tiny(layers=1), []

    def note(name: str) -> Any:
        def hook(_: Any, __: Any, kwargs: dict) -> None:
            if tuple(kwargs["input_ids"].shape) == (1, 12):
                calls.append(name)

        return hook

    dense.model.register_forward_pre_hook(note("dense"), with_kwargs=True)
    pruned.model.register_forward_pre_hook(note("pruned"), with_kwargs=True)
    measure_side_by_side(dense, pruned, SPEED)
    assert calls == ["dense", "pruned"] * 5  # two to warm up, three timed


def test_one_iteration_has_no_spread() -> None:
    assert (
        measure(
            tiny(), SPEED.model_copy(update={"prompt_iterations": 1})
        ).prompt_ms_stdev
        is None
    )


def test_generation_goes_on_past_the_end_of_text() -> None:
    loaded = tiny()
    # all logits are 0: the first token, which ends a text, is next
    torch.nn.init.zeros_(loaded.model.lm_head.weight)
    made = generate(loaded.model, torch.ones(2, 5, dtype=torch.int64), 4)
    assert made.sequences.shape == (2, 9)


def test_prompt_length_auto_is_the_shortest_context() -> None:
    auto = SPEED.model_copy(update={"prompt_tokens": "auto"})
    shorter = tiny()
    shorter.model.config.max_position_embeddings = 32
    assert prompt_length([tiny()], auto) == 64
    assert prompt_length([tiny(), shorter], auto) == 32
    shorter.model.config.max_position_embeddings = 100_000
    assert prompt_length([shorter], auto) == 2048


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_tokens": 65}, r"prompt_tokens 65 exceeds the model's context of 64"),
        (
            {"generate_prompt": 61},
            r"generate_prompt 61 and speed.new_tokens 4 together exceed .* 64",
        ),
    ],
)
def test_what_does_not_fit_the_context_is_refused(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        measure(tiny(), SPEED.model_copy(update=change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generation_agrees_for_a_sound_model(dtype: torch.dtype) -> None:
    loaded = tiny(dtype)
    assert generation_agrees(loaded, new_tokens=16)
    assert loaded.model.dtype == dtype


def test_generation_agrees_after_layers_are_removed() -> None:
    loaded = tiny(layers=3)
    remove_layers(loaded.model, [0])
    assert generation_agrees(loaded, new_tokens=16)


def test_a_short_context_still_can_be_checked() -> None:
    loaded = tiny()
    loaded.model.config.max_position_embeddings = 10
    assert generation_agrees(loaded, new_tokens=16)


def test_generation_disagrees_when_two_layers_share_a_place_in_the_cache() -> None:
    loaded = tiny()
    loaded.model.model.layers[1].self_attn.layer_idx = 0
    assert not generation_agrees(loaded, new_tokens=16)


def full(*_: Any, **__: Any) -> None:
    """Fail as torch does on a CPU."""
    raise RuntimeError(
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
    )


def test_a_want_of_memory_while_a_model_is_timed_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("elder.evaluation.bench.generate", full)
    with pytest.raises(
        UserError, match=r"to measure speed; lower speed\.batch or speed\.prompt_tokens"
    ):
        measure(tiny(), SPEED)


def test_a_want_of_memory_does_not_count_as_wrong_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("elder.evaluation.speed.generate", full)
    with pytest.raises(
        UserError, match="the check of generation does not fit into memory"
    ):
        generation_agrees(tiny(), new_tokens=16)


def test_generation_disagrees_when_a_layer_goes_without_its_index() -> None:
    loaded = tiny(layers=3)
    del loaded.model.model.layers[0]
    loaded.model.config.num_hidden_layers = 2
    assert not generation_agrees(loaded, new_tokens=16)


def test_generation_disagrees_when_the_cache_is_spoilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.cache_utils import DynamicLayer

    update = DynamicLayer.update

    def forget(
        self: Any, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        return update(self, keys, torch.zeros_like(values), *args, **kwargs)

    loaded = tiny()
    assert generation_agrees(loaded, new_tokens=16)
    # nothing is raised: only the tokens tell
    monkeypatch.setattr(DynamicLayer, "update", forget)
    assert not generation_agrees(loaded, new_tokens=16)
