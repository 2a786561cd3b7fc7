"""The kinds of work that stages do on a model, as `elder.plan.simulate` runs them: the functions of the stages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from elder import params
from elder.compensation.states import states_at
from elder.model.forward import block_losses, cache_bytes, next_token_losses, run_layers
from elder.model.layers import LayerControl, find_layers
from elder.model.offload import compute_twice
from elder.plan.live import ACTIVATIONS, GRADIENTS, OPTIMISER, WEIGHTS
from elder.plan.simulate import Lab, Work
from elder.training.checkpoint import trainable_weights
from elder.training.loop import Batch, LossFunction, gradients
from elder.training.losses import state_mismatch
from elder.training.optim import Optimizer
from elder.training.ready import checkpointing, trainable

CACHE = "cache"
MakeLoss = Callable[[Lab, Any], LossFunction]  # of the model that trains


def look(dtype: torch.dtype, batch: int, keep: bool = False) -> Work:
    """Run the layers on blocks; keep the state after each where asked."""

    def work(lab: Lab) -> None:
        model, ids = lab.model(dtype), lab.blocks(batch)
        states: list[Tensor] = []
        with lab.live, torch.no_grad(), LayerControl(find_layers(model)) as control:
            if keep:
                control.observe = lambda _, __, leaving: states.append(leaving)
            run_layers(model, ids)

    return work


def judge(dtype: torch.dtype, batch: int, keep: bool = False) -> Work:
    """Take the loss of blocks, without gradients; keep the state after each layer where asked."""

    def work(lab: Lab) -> None:
        model, ids = lab.model(dtype), lab.blocks(batch)
        states: list[Tensor] = []
        with lab.live, LayerControl(find_layers(model)) as control:
            if keep:
                control.observe = lambda _, __, leaving: states.append(leaving)
            block_losses(model, ids, batch)

    return work


def weigh(dtype: torch.dtype, batch: int, twice: bool = False) -> Work:
    """Take the loss of blocks, and its gradient by a weight for each layer; each computed twice where asked."""

    def work(lab: Lab) -> None:
        model, ids = lab.model(dtype), lab.blocks(batch)
        weights = torch.ones(
            lab.layers,
            requires_grad=True,
        )
        for layer in find_layers(model) if twice else ():
            compute_twice(layer)
        with lab.live, LayerControl(find_layers(model)) as control:
            control.weights = weights
            loss = next_token_losses(model, ids).mean()
            torch.autograd.grad(
                loss,
                weights,
            )

    return work


def differentiate(dtype: torch.dtype, batch: int) -> Work:
    """Take the gradient by the matrices inside the layers, one after the other, and keep none."""

    def work(lab: Lab) -> None:
        model, ids = lab.model(dtype), lab.blocks(batch)

        def drop(weight: Tensor) -> None:
            weight.grad = None

        for weight in find_layers(model).parameters():
            if weight.ndim > 1:
                weight.requires_grad_(True)
                weight.register_post_accumulate_grad_hook(drop)
        with lab.live:
            next_token_losses(model, ids).mean().backward()

    return work


def write(dtype: torch.dtype) -> Work:
    """Fill the key/value cache of one block."""

    def work(lab: Lab) -> None:
        model, ids = lab.model(dtype), lab.blocks(1)
        with lab.live, torch.no_grad():
            known = model(
                input_ids=ids,
                use_cache=True,
            ).past_key_values
        lab.live.peaks = {CACHE: {CACHE: cache_bytes(known)}}

    return work


def fit(
    settings: params.Training,
    make_loss: MakeLoss,
    dtypes: tuple[torch.dtype, torch.dtype],
    optimizer: str,
) -> Work:
    """Take one step of a training, its optimiser's state being there.

    Args:
        settings: of the training.
        make_loss: makes its loss.
        dtypes: of the weights that train, and of the forward pass.
        optimizer: ``adamw`` or ``muon``.
    """
    dtype, compute = dtypes

    def work(lab: Lab) -> None:
        model = lab.model(dtype)
        rank = settings.adapter_rank
        saving = checkpointing(model) if settings.gradient_checkpointing else None
        with _unmoved(), trainable(model, rank, 0) as trained, saving or nullcontext():
            trained.train()
            step = Step(
                lab,
                trained,
                make_loss(lab, model),
            )
            step.prepare(optimizer, settings)
            step.take(settings, compute)
            trained.requires_grad_(False)

    return work


def refit(compute: torch.dtype, batch: int, optimizer: str) -> Work:
    """Take one step in which a layer learns by itself to put out other states, its optimiser's state being there.

    Args:
        compute: dtype of the forward pass.
        batch: blocks in the step.
        optimizer: ``adamw`` or ``muon``.
    """

    def work(lab: Lab) -> None:
        model = lab.model(torch.float32)
        find_layers(model).requires_grad_(True)
        settings = params.Training(batch=batch)

        def loss(ids: Tensor) -> Tensor:
            _, leaving = states_at(model, 0, ids)
            wanted = torch.zeros_like(leaving)
            return state_mismatch(
                leaving,
                wanted,
            )

        step = Step(lab, model, loss)
        step.prepare(optimizer, settings)
        step.take(settings, compute)

    return work


@contextmanager
def _unmoved() -> Iterator[None]:
    """Let modules stay on their device, where they are asked to move to it: fake weights cannot."""
    move = nn.Module.to
    nn.Module.to = lambda module, *_, **__: module  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.to = move  # type: ignore[method-assign]


class Step:
    """One step of a training, counted.

    Args:
        lab: where it is taken.
        model: what trains.
        loss_of: what is minimised.
    """

    def __init__(self, lab: Lab, model: nn.Module, loss_of: LossFunction) -> None:
        self.lab, self.live = lab, lab.live
        self.model, self.loss_of = model, loss_of
        self.weights = trainable_weights(model)
        self.pieces = self.done = 0
        for weight in self.weights:
            weight.register_post_accumulate_grad_hook(self._has_gradient)

    def prepare(self, optimizer: str, settings: params.Training) -> None:
        """Let the optimiser make its state."""
        live = self.live
        with live:
            live.kind = OPTIMISER
            self.optimizer = Optimizer(
                self.model, optimizer, 1e-3, not settings.adapter_rank, 0.0
            )
            if settings.adapter_rank:  # adapters are new
                for weight in self.weights:
                    live.add(weight, WEIGHTS)
            for weight in self.weights:
                weight.grad = torch.zeros_like(weight)
            self.optimizer.step(1.0)
        live.peaks, live.flops = {}, 0.0

    def take(self, settings: params.Training, compute: torch.dtype) -> None:
        """Go forward and backward, and move the weights."""
        live = self.live
        at_once = min(
            settings.micro_batch or settings.batch,
            settings.batch,
        )
        blocks = min(settings.batch, 2 * at_once)  # the second finds gradients
        with live:
            live.kind = ACTIVATIONS
            batch = Batch(
                self.lab.blocks(blocks),
                self._loss,
                compute,
                0,
            )
            gradients(
                self.model,
                batch,
                at_once,
            )
            live.flops *= settings.batch / blocks
            live.phase, live.kind = "step", OPTIMISER
            self.optimizer.step(1.0)

    def _loss(self, ids: Tensor) -> Tensor:
        self.pieces, self.done = self.pieces + 1, 0
        self.live.phase = f"forward {self.pieces}"
        return self.loss_of(ids)

    def _has_gradient(self, weight: Tensor) -> None:
        """Tell gradients from other tensors; the second half of them comes in a phase of its own."""
        if weight.grad is not None:
            self.live.add(
                weight.grad,
                GRADIENTS,
            )
        self.done += 1
        if 2 * self.done >= len(self.weights):
            self.live.phase = f"backward {self.pieces}"
