"""Weights beside the dense model's: a removal never leaves its range, codes without their scales are far out of it."""

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from elder.evaluation.gate import MAGNITUDE, differences, judge_again
from elder.model.finite import compare_weights
from elder.model.layers import remove_layers
from elder.params import Gate
from elder.record import Record, plain
from tests.elder.evaluation.test_gate import (
    DENSE,
    GOOD,
    SPEED,
    altered,
    broken,
    judge,
    rule_of,
)
from tests.elder.records import make_record


def test_a_removal_stays_within_the_range_of_the_dense_model(llama) -> None:
    dense = llama()
    # one layer far larger than the others, and one of nothing but zeros
    dense.model.layers[1].mlp.up_proj.weight.data.mul_(1e4)
    dense.model.layers[2].mlp.up_proj.weight.data.zero_()
    for gone in ([1], [2], [0, 1, 3], [0, 2, 3]):
        pruned = copy.deepcopy(dense)
        remove_layers(pruned, gone)
        found = compare_weights(dense, pruned)
        assert (found.finite, found.factor) == (True, 1.0)


@pytest.mark.parametrize("factor", [4.0, 1 / 4])
def test_the_kind_that_is_furthest_out_is_named(llama, factor: float) -> None:
    dense = llama()
    pruned = copy.deepcopy(dense)
    for layer in pruned.model.layers:
        layer.mlp.down_proj.weight.data.mul_(factor)
        layer.self_attn.q_proj.weight.data.mul_(2.0)
    found = compare_weights(dense, pruned)
    # layers differ a little from each other, so that the factor beyond their range is a little less
    assert 3.8 < found.factor <= 4.0
    assert found.matrix == "model.layers.*.mlp.down_proj.weight"


def test_fp8_codes_without_their_scales_are_out_of_range(llama) -> None:
    dense = llama()
    pruned = copy.deepcopy(dense)
    for layer in pruned.model.layers:
        weight = layer.mlp.up_proj.weight.data
        weight.mul_(448 / weight.abs().max())
    found = compare_weights(dense, pruned)
    assert found.finite
    assert found.factor > 5 * MAGNITUDE


def test_weights_that_are_not_finite_or_vanished(llama) -> None:
    dense = llama()
    pruned = copy.deepcopy(dense)
    pruned.model.norm.weight.data[0] = float("inf")
    assert compare_weights(dense, pruned).model_dump()["finite"] is False
    empty = copy.deepcopy(dense)
    for layer in empty.model.layers:
        layer.mlp.up_proj.weight.data.zero_()
    found = compare_weights(dense, empty)
    assert (found.finite, found.factor) == (True, None)
    assert found.matrix == "model.layers.*.mlp.up_proj.weight"


def test_an_untied_head_is_compared_with_all_matrices(llama) -> None:
    dense = llama(tie_word_embeddings=True)
    pruned: LlamaForCausalLM = llama(tie_word_embeddings=False)
    pruned.load_state_dict(dense.state_dict())
    assert compare_weights(dense, pruned).factor == 1.0
    assert torch.equal(pruned.lm_head.weight, dense.lm_head.weight)


@pytest.mark.parametrize("mode", ["on", "dry-run", "off"])
@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"finite": True, "factor": 100.5, "matrix": "lm_head"}, "by a factor of 100"),
        ({"finite": True, "factor": None, "matrix": "lm_head"}, "infinitely far"),
        ({"finite": False, "factor": None}, "nan or infinite"),
        (None, "nothing passes unmeasured"),
    ],
)
def test_no_mode_lets_broken_weights_pass(mode: str, found: Any, said: str) -> None:
    limits = dict.fromkeys(
        name for name in Gate.model_fields if name.startswith(("max", "min"))
    )
    gate = Gate(mode=mode, check_generation=False, check_loads=False, **limits)
    verdict = judge(gate, DENSE, GOOD, altered(SPEED, "weights", found), None)
    assert broken(verdict) == ["weights"]
    assert verdict.refused
    assert said in rule_of(verdict, "weights").reason
    assert judge(gate, DENSE, GOOD, SPEED, None).passed


def test_records_from_before_the_rule_on_weights_are_judged_as_they_were() -> None:
    verdict = judge(Gate(max_champion_ratio=None), DENSE, GOOD, SPEED, None)
    old = [plain(rule) for rule in verdict.rules if rule.rule != "weights"]
    tree = make_record() | {
        "rows": [DENSE, GOOD],
        "speed": {key: SPEED[key] for key in SPEED if key != "weights"},
        "champion": None,
        "gate": {"mode": "on", "passed": True, "enforced": True, "rules": old},
        "lineage": {"params": {"gate": {"max_champion_ratio": None}}},
    }
    record = Record.model_validate(tree)
    assert differences(record.gate, judge_again(record)) == []
    measured = Record.model_validate(tree | {"speed": SPEED})
    assert len(differences(measured.gate, judge_again(measured))) == 1
