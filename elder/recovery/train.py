"""Recovery by the calibration text itself: the next-token loss, with no teacher."""

from torch import Tensor

from elder.model.forward import next_token_losses
from elder.params.catalogue import NoSettings
from elder.recovery.base import Student, register
from elder.training.loop import LossFunction


@register("train")
def train(student: Student[NoSettings]) -> LossFunction:
    """Return the mean next-token loss of a batch of token ids, (batch, seq_len), in nats: a scalar."""

    def loss(ids: Tensor) -> Tensor:
        return next_token_losses(student.model, ids).mean()

    return loss
