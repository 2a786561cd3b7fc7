"""The shallower model beside the dense one, whose weights it shares: only what differs takes memory of its own."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from elder.compensation.base import find_groups
from elder.model.layers import find_layers, remove_layers, twin
from elder.model.load import Loaded
from elder.parallel.shard import own_part


def without_layers(dense: Loaded, removed: Sequence[int]) -> Loaded:
    """Return a model without some of its layers, all of whose weights are the dense one's."""
    shallow = replace(dense, model=twin(dense.model))
    remove_layers(shallow.model, removed)
    return shallow


@torch.no_grad()
def drop_layers(model: nn.Module) -> None:
    """Free the memory of a model's layers, which are no longer run; the head stays."""
    find_layers(model).to("meta")
    for left in (*model.parameters(), *model.buffers()):
        if not left.is_meta:  # the file that it was mapped from, layers and all, goes with its last tensor
            left.data = left.data.clone()


def to_compensate(dense: Loaded, removed: Sequence[int], everywhere: bool) -> Loaded:
    """Return a model without some of its layers, for a compensation to change.

    Args:
        dense: the model that they are taken out of.
        removed: the layers.
        everywhere: any weight may be changed; otherwise those of the layers that stand for removed ones.
    """
    shallow = without_layers(dense, removed)
    if everywhere:
        return replace(shallow, model=copy.deepcopy(shallow.model))
    layers = find_layers(shallow.model)
    for group in find_groups(removed, dense.num_layers):
        layers[group.place] = copy.deepcopy(layers[group.place])
    return shallow


def sharing(dense: Loaded, other: nn.Module, removed: Sequence[int]) -> Loaded:
    """Return a shallower model that is like another; what it has of its own are the weights in which the two differ.

    Args:
        dense: the model before removal.
        other: the shallower model, in the same dtype, on any device.
        removed: the layers that it lacks.
    """
    shallow = without_layers(dense, removed)
    for name, mine, its in differences(shallow.model, other):
        module, _, leaf = name.rpartition(".")
        own = nn.Parameter(its.to(mine), requires_grad=mine.requires_grad)
        setattr(shallow.model.get_submodule(module), leaf, own)
    return shallow


def differences(
    model: nn.Module, other: nn.Module
) -> list[tuple[str, nn.Parameter, torch.Tensor]]:
    """Return the weights in which two models of one shape differ: their name, the first's, and the second's value."""
    wanted = dict(other.named_parameters())
    found = []
    for name, mine in model.named_parameters():
        its = own_part(wanted[name].detach())
        if not torch.equal(own_part(mine.detach()).cpu(), its.to("cpu", mine.dtype)):
            found.append((name, mine, its))
    return found
