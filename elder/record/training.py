"""What choosing layers and training found: scores round by round, losses step by step, and the budget that was used."""

from typing import Annotated

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    model_serializer,
)

from elder.record.base import Json, Number, Plain


class Point(Plain):
    """One optimiser step: ``loss`` in nats, and the learning rate of it."""

    stage: str | None = None
    step: int
    loss: Number
    lr: Number


class Trial(Plain):
    """One trial of an automatic choice: what was tried stands beside these as further keys, such as ``lr``."""

    stage: str
    held_out_loss: Number | None
    tokens: int
    chosen: bool = False

    @model_serializer(mode="wrap")
    def _in_order(self, write: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Write what was tried behind the stage, before what came of it."""
        written: dict[str, Json] = write(self)
        tried = {
            name: written.pop(name)
            for name in self.model_extra or {}
            if name in written
        }
        stage = {"stage": written.pop("stage")} if "stage" in written else {}
        return stage | tried | written


class Spent(BaseModel):
    """The budget a training used, search included; counted up while the training goes on.

    Attributes:
        tokens_seen: tokens passed forward and backward.
        optimizer_steps: steps taken.
        trainable_parameters: parameters that moved.
        tokens_generated: tokens that the dense model wrote, for the shallower one to learn from.
        curve: points of the run that was kept.
        search: one record for each trial of an automatic choice.
    """

    tokens_seen: int = 0
    optimizer_steps: int = 0
    trainable_parameters: int = 0
    tokens_generated: int = 0
    curve: list["Point"] = Field(default_factory=list)
    search: list["Trial"] = Field(default_factory=list)


class Round(Plain):
    """One round of a selection.

    Attributes:
        removed: which went.
        values: the score of each layer, None where it was not offered.
        checked: (layer, loss without it) of the layers that the scores had shortlisted, where the loss decided.
        blocks: (layer, blocks that it was tried on) of a race; of those on the most, the lowest loss decided.
    """

    removed: list[int]
    values: list[Number | None]
    checked: list[Annotated[tuple[int, Number], Strict(False)]] = Field(
        default_factory=list
    )
    blocks: list[Annotated[tuple[int, int], Strict(False)]] = Field(
        default_factory=list
    )


class Scores(Plain):
    """What a selection decided by: ``name`` says what the values are; the layer with the lowest goes."""

    name: str = "score"
    lower_goes: bool = True
    rounds: list[Round]
