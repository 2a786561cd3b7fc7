"""Compensation after a removal: what every method does, and what it must leave as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from elder.compensation import COMPENSATIONS, NONE, compensate, refuse_unfit
from elder.compensation.base import Gap, Group, find_gaps, find_groups, register
from elder.errors import UserError
from elder.model.forward import block_losses, logits_of
from elder.model.load import weights_digest
from elder.model.save import save_model
from tests.elder.compensation.removals import NORM_AFTER, build, pruned

METHODS = sorted(COMPENSATIONS)


# --- the gaps and the registry ---


def test_the_gaps_of_a_removal_by_hand() -> None:
    # layers 0 1 2 3 4 5 6 7 without 0, 3, 4 and 7: 1, 2, 5 and 6 become 0, 1, 2 and 3
    assert find_gaps((4, 7, 0, 3), 8) == [Gap(0, 1, 0), Gap(3, 5, 2), Gap(7, 8, 4)]
    assert Gap(3, 5, 2).layers == [3, 4]


def test_the_groups_of_a_removal_by_hand() -> None:
    # kept: 1, 2, 5 and 6. 1 stands for 0, too; 2 for 3 and 4; 6 for 7; 5 for itself alone
    assert find_groups((4, 7, 0, 3), 8) == [
        Group(1, 0, (0, 1)),
        Group(2, 1, (2, 3, 4)),
        Group(6, 3, (6, 7)),
    ]
    assert Group(2, 1, (2, 3, 4)).removed == [3, 4]
    # both sides of the first kept layer
    assert find_groups((0, 2), 3) == [Group(1, 0, (0, 1, 2))]


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(
        UserError,
        match=r"no compensation 'liner'; did you mean 'linear'\? valid: .*linear, .*none",
    ):
        COMPENSATIONS.find("liner")
    for taken in ("linear", NONE):
        with pytest.raises(ValueError, match="registered already"):
            register(taken)(lambda _: {})


def test_none_does_nothing(llama: Callable, blocks: torch.Tensor) -> None:
    job = pruned(llama(3), (1,), blocks, NONE)
    before = weights_digest(job.model)
    assert compensate(NONE, job) == {"method": NONE}
    assert weights_digest(job.model) == before


# --- all of them ---


@pytest.mark.parametrize("method", METHODS)
def test_of_the_dense_model_states_alone_are_asked(
    llama: Callable, blocks: torch.Tensor, method: str
) -> None:
    job = pruned(llama(6), (1, 3), blocks, method)
    job.dense.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the head ran"))
    assert len(compensate(method, job)["gaps"]) == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_keeps_dtype_and_shapes_and_repeats_itself(
    trained: Any,
    text_blocks: torch.Tensor,
    tmp_path: Path,
    method: str,
    dtype: torch.dtype,
) -> None:
    dense = trained
    # and no buffer: a loaded model keeps those of the positions in float32
    for parameter in dense.parameters():
        parameter.data = parameter.data.to(dtype)
    untouched = weights_digest(dense)
    jobs = [pruned(dense, (1, 3, 4), text_blocks[:24], method) for _ in range(2)]
    before = weights_digest(jobs[0].model)
    records = [compensate(method, job) for job in jobs]
    assert records[0] == records[1]
    assert json.loads(json.dumps(records[0], allow_nan=False)) == records[0]
    assert [gap["removed"] for gap in records[0]["gaps"]] == [[1], [3, 4]]
    assert weights_digest(jobs[0].model) == weights_digest(jobs[1].model) != before
    assert weights_digest(dense) == untouched
    assert {p.dtype for p in jobs[0].model.parameters()} == {dtype}
    losses = [block_losses(jobs[0].model, text_blocks[21:24], 4).mean().item()]
    # the last eighth of the blocks
    assert losses == pytest.approx([records[0]["held_out_loss"]["after"]])
    save_model(jobs[0].model, Nameless(), tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(
        logits_of(again, text_blocks[:2]), logits_of(jobs[0].model, text_blocks[:2])
    )


class Nameless:
    """Stands for a tokenizer that has nothing to save."""

    def save_pretrained(self, _: Path) -> None:
        pass


# --- some of them ---


@pytest.mark.parametrize("method", ["merge", "linear", "ghost"])
def test_layers_with_none_before_them_are_just_gone(
    llama: Callable, blocks: torch.Tensor, method: str
) -> None:
    job = pruned(llama(4), (0, 1), blocks, method)
    before = weights_digest(job.model)
    record = compensate(method, job)
    assert [(gap["removed"], gap["into"]) for gap in record["gaps"]] == [([0, 1], None)]
    assert weights_digest(job.model) == before


@pytest.mark.parametrize("family", NORM_AFTER)
@pytest.mark.parametrize("method", ["magnitude", "linear", "ghost"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_with_a_norm_after_the_projection_are_refused(
    family: str, method: str, dtype: torch.dtype, blocks: torch.Tensor
) -> None:
    job = pruned(build(family).to(dtype), (2, 3), blocks, method)
    before = weights_digest(job.model)
    with pytest.raises(
        UserError,
        match=r"ForCausalLM cannot be compensated by .*; set compensate.method to",
    ):
        compensate(method, job)
    assert weights_digest(job.model) == before
    # and before layers are chosen
    with pytest.raises(UserError, match="ForCausalLM cannot be compensated by"):
        refuse_unfit(method, job.dense, blocks)
