"""Recovery by what the dense model makes of the text: distillation.

It follows the dense model's next-token distribution, and where asked for also the text itself and the dense model's
hidden states t after the kept layers, whose own are s:

    L = (1 - next_token) KL + next_token LM + hidden * mean over kept layers of ||s - t||^2 / ||t||^2
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from elder.device import device_of_model
from elder.model.forward import next_token_losses, observed_states
from elder.model.head import by_position, logits_of_states
from elder.model.layers import find_layers
from elder.params import Auto, Section, Strength
from elder.recovery.base import States, Student, register
from elder.training.loop import LossFunction
from elder.training.losses import divergences, state_mismatch


class DistilSettings(Section):
    """What following the dense model depends on."""

    next_token: float = Field(
        0.0, ge=0, le=1, description="share of next-token loss beside that of logits"
    )
    hidden: Strength = Field(
        0.0, description="weight of the match of the kept layers' hidden states"
    )
    synthetic: Annotated[int, Field(ge=0)] | Auto = Field(
        "auto",
        description="blocks that the dense model writes for each of calibration; auto: 4 at most, none seen twice",
    )
    drawing: Literal["sums", "multinomial"] = Field(
        "sums",
        description="how a CPU draws their tokens; multinomial: as before there was a choice, and slower",
    )
    states: Literal["kept", "anew"] = Field(
        "kept",
        description="what the dense model makes of a block: kept on the disk, or computed anew each time, and slower",
    )

    @property
    def keeps_states(self) -> bool:
        """Say whether the dense model's states are kept: those that enter its head are, and no others."""
        return self.states == "kept" and not self.hidden


@register("distil", settings=DistilSettings, teacher=True)
def distil(student: Student[DistilSettings]) -> LossFunction:
    """Return the distance of the shallower model from the dense one, as the head of this file has it."""
    depths: list[int] = []
    if student.settings.hidden:
        count = len(find_layers(student.dense))
        depths = matching_layers(count, student.removed)
    return Distillation(
        student.model, student.dense, depths, student.settings, student.states
    )


@dataclass(frozen=True)
class Distillation:
    """The loss of distillation.

    Attributes:
        model: the shallower model.
        dense: the dense model, frozen.
        depths: for each kept layer, the dense layer whose output it should put out; none where ``hidden`` is 0.
        settings: of the recovery.
        known: gives what enters the dense model's head; None: the dense model is run.
    """

    model: Any
    dense: Any
    depths: Sequence[int]
    settings: DistilSettings
    known: States | None = None

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the loss of token ids, (batch, seq_len), in nats: a scalar."""
        target, wanted = self._of_dense(ids)
        final, states = observed_states(self.model, ids, range(len(self.depths)))
        share, hidden = self.settings.next_token, self.settings.hidden
        pair = final.flatten(0, 1), target.flatten(0, 1)
        total = (1 - share) * by_position(self.model, self._divergences, *pair).mean()
        if share:
            total = (
                total + share * next_token_losses(self.model, ids, states=final).mean()
            )
        if hidden:
            terms = []
            for (_, mine), (_, its) in zip(states, wanted, strict=True):
                terms.append(state_mismatch(mine, its))
            total = total + hidden * torch.stack(terms).mean()
        return total

    @torch.no_grad()
    def _of_dense(self, ids: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return what `observed_states` does, of the dense model."""
        if self.known is None:
            return observed_states(self.dense, ids, self.depths)
        return self.known(ids).to(device_of_model(self.dense)), []

    def _divergences(self, mine: Tensor, its: Tensor) -> Tensor:
        """Return the divergences at some positions, from what enters the two heads."""
        with torch.no_grad():
            wanted = logits_of_states(self.dense, its)
        return divergences(logits_of_states(self.model, mine), wanted)


def matching_layers(count: int, removed: Collection[int]) -> list[int]:
    """Return for each kept layer the one of ``count`` dense layers whose output it should put out.

    That is the layer before the next kept one, or the last: what removed layers added is now its own to add.
    """
    kept = [index for index in range(count) if index not in removed]
    return [following - 1 for following in kept[1:]] + [count - 1]
