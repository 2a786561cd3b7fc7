"""The compensation ``magnitude``: its factor by hand, and folded into the weights of every family."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from elder.compensation import compensate
from elder.compensation.base import Gap
from elder.compensation.magnitude import measure
from elder.errors import UserError
from elder.model.forward import logits_of
from elder.model.layers import find_layers, remove_layers
from tests.elder.compensation.removals import FAMILIES, NORM_AFTER, build, pruned


def test_alpha_is_the_ratio_of_mean_norms(
    llama: Callable, blocks: torch.Tensor
) -> None:
    dense = llama(4)
    # 0: embeddings; i: entering layer i
    states = dense(input_ids=blocks, output_hidden_states=True).hidden_states
    norms = [state.norm(dim=-1).mean().item() for state in states]
    found = measure(dense, [Gap(0, 1, 0), Gap(2, 3, 1)], blocks, batch=4)
    assert found == pytest.approx([norms[1] / norms[0], norms[3] / norms[2]], rel=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - NORM_AFTER))
def test_folding_alpha_equals_scaling_the_stream(
    family: str, blocks: torch.Tensor
) -> None:
    job = pruned(build(family), (0, 3), blocks, "magnitude")
    plain = copy.deepcopy(job.model)
    record = compensate("magnitude", job)
    scales = [gap["scale"] for gap in record["gaps"]]
    hooks = [  # without layers 0 and 3, layer 1 is the first, and layer 4 the third
        find_layers(plain)[place].register_forward_pre_hook(
            scaling(scale), with_kwargs=True
        )
        for place, scale in zip((0, 2), scales, strict=True)
    ]
    expected = logits_of(plain, blocks)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(
        logits_of(job.model, blocks),
        expected,
        rtol=1e-2,
        atol=1e-2 * expected.std().item(),
    )
    # it did make a difference
    assert (logits_of(plain, blocks) - expected).std() > 0.1 * expected.std()
    for name in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(
            getattr(job.model, name)().weight, getattr(plain, name)().weight
        )


def scaling(scale: float) -> Callable:
    """Return a hook that multiplies the hidden state entering a layer."""

    def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (args[0] * scale, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] * scale}

    return hook


def test_a_model_without_a_last_norm_is_refused(
    llama: Callable, blocks: torch.Tensor
) -> None:
    dense = llama(4)
    remove_layers(dense, (3,))
    job = pruned(dense, (1,), blocks, "magnitude")
    job.model.model.norm = nn.Identity()
    with pytest.raises(UserError, match="it has no norm after its last layer"):
        compensate("magnitude", job)
