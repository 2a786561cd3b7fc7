"""The compensation ``merge``: the sum by hand, and layers that do not fit."""

import copy
from collections.abc import Callable

import pytest
import torch

from elder.compensation import compensate
from elder.errors import UserError
from elder.model.layers import find_layers
from elder.model.load import weights_digest
from tests.elder.compensation.removals import build, pruned


def test_merging_by_hand(llama: Callable, blocks: torch.Tensor) -> None:
    dense = llama(4)
    values = [[[1.0, 2], [3, 4]], [[2.0, 2], [2, 2]], [[0.0, 1], [0, 1]]]
    for layer, value in zip(find_layers(dense), values, strict=False):
        layer.mlp.down_proj.weight.data[:2, :2] = torch.tensor(value)
        layer.input_layernorm.weight.data.fill_(value[0][0])
    job = pruned(dense, (2, 1), blocks, "merge")
    last = copy.deepcopy(find_layers(job.model)[1].state_dict())
    record = compensate("merge", job)
    # theta_0 + (theta_1 - theta_0) + (theta_2 - theta_0), all against the first: theta_1 + theta_2 - theta_0
    first = find_layers(job.model)[0]
    assert first.mlp.down_proj.weight[:2, :2].tolist() == [[1, 1], [-1, -1]]
    assert first.input_layernorm.weight.tolist() == [1.0] * 32  # 2 + 0 - 1
    assert all(
        torch.equal(value, last[name])
        for name, value in find_layers(job.model)[1].state_dict().items()
    )
    assert record["gaps"] == [{"removed": [1, 2], "into": 0}]
    assert record["tokens"] == 0


def test_layers_of_other_shapes_do_not_merge(blocks: torch.Tensor) -> None:
    dense = build("deepseek-v3")
    kinds = [type(layer.mlp).__name__ for layer in find_layers(dense)]
    # the first layer with experts
    index = next(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1])
    job = pruned(dense, (index,), blocks, "merge")
    before = weights_digest(job.model)
    sentence = (
        f"layer {index} cannot be merged into layer {index - 1}: their weights differ"
    )
    with pytest.raises(UserError, match=sentence):
        compensate("merge", job)
    assert weights_digest(job.model) == before
