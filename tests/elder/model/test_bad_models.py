"""The gate on measured numbers: a model made bad on purpose is refused by the rules meant for it, a good one passes."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from elder.evaluation.gate import judge
from elder.evaluation.perplexity import perplexity_of_text
from elder.evaluation.repetition import repetition
from elder.evaluation.speed import generation_agrees, measure_side_by_side
from elder.model.finite import compare_weights
from elder.model.layers import remove_layers
from elder.model.load import Loaded
from elder.params import Gate, Speed
from elder.record import Row

SPEED = Speed(
    prompt_tokens=12,
    prompt_iterations=1,
    batch=16,
    generate_prompt=5,
    new_tokens=4,
    generate_iterations=1,
)
# what a layer takes of so small a model's time is lost in the noise of a busy machine
GATE = Gate(
    max_task_mean_loss=None,
    max_task_loss=None,
    min_prompt_speedup=None,
    check_loads=False,
)
TEXTS = {"perplexity in domain", "perplexity out of domain"}


def nothing(model: LlamaForCausalLM) -> None:
    pass


def noise(model: LlamaForCausalLM) -> None:
    """Add noise as large as the weights themselves."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.add_(
            torch.randn(weight.shape, generator=generator) * weight.std(correction=0)
        )


def certainty(model: LlamaForCausalLM) -> None:
    """Make the likeliest token certain, so that the model's text is a loop."""
    model.model.norm.weight.mul_(50)


def wrong_places(model: LlamaForCausalLM) -> None:
    """Let two layers write to one place of the cache, as a removal that forgets the indices would."""
    model.model.layers[1].self_attn.layer_idx = 0


def row_of(kind: str, loaded: Loaded, text: Path) -> Row:
    found = perplexity_of_text(loaded, text, 48, 4096, 16)
    measured = {"in_domain": found, "out_of_domain": found}
    return Row(name=kind, kind=kind, perplexity=measured, protocol_digest="d" * 64)


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (nothing, set()),
        (noise, TEXTS),
        (certainty, TEXTS | {"repetition"}),
        (wrong_places, {"generation with cache"}),
    ],
)
def test_the_gate_lets_good_models_pass_only(
    trained_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    text_file: Path,
    spoil: Callable[[LlamaForCausalLM], None],
    broken: set[str],
) -> None:
    candidate = copy.deepcopy(trained_model)
    remove_layers(candidate, [2])
    spoil(candidate)
    dense, pruned = (
        Loaded(model, tokenizer, "tiny", None, torch.float32)
        for model in (trained_model, candidate)
    )
    speed = measure_side_by_side(dense, pruned, SPEED).model_copy(
        update={
            "generation_agrees": generation_agrees(pruned),
            "repetition": repetition(dense, pruned, text_file, 16),
            "weights": compare_weights(trained_model, candidate),
        }
    )
    rows = row_of("dense", dense, text_file), row_of("candidate", pruned, text_file)
    verdict = judge(GATE, *rows, speed, None)
    assert {rule.rule for rule in verdict.rules if not rule.passed} == broken
    assert verdict.passed is not bool(broken)
