"""The blocks of one training: which it learns from, and which judge what it tries out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from elder.training.search import HELD_OUT_SHARE, hold_out


@dataclass(frozen=True)
class TrainingData:
    """Blocks of token ids, int64 on the CPU.

    Attributes:
        fit: what trials learn from, (n, seq_len): text that the dense model wrote first, calibration text after it.
        held_out: what trials are judged by, (m, seq_len): calibration text alone. The run after the trials learns from
            it, too.
        written: how many of the first rows of ``fit`` the dense model wrote.
    """

    fit: Tensor
    held_out: Tensor
    written: int = 0

    @property
    def blocks(self) -> Tensor:
        """Return all blocks, (n + m, seq_len), in the order of `fit` and `held_out`."""
        return torch.cat([self.fit, self.held_out])

    @property
    def calibration_blocks(self) -> int:
        """Return how many blocks are calibration text: an epoch is a pass over as many."""
        return len(self.fit) + len(self.held_out) - self.written

    @property
    def tokens_written(self) -> int:
        """Return how many tokens the dense model wrote."""
        return self.written * self.fit.shape[1]


def training_data(calibration: Tensor, written: Tensor | None = None) -> TrainingData:
    """Divide blocks into those to learn from and those to judge by.

    An eighth of all blocks judges, the last of the calibration blocks. Written text never does: a model must not be
    judged by how well it repeats another's. Where an eighth is more than all calibration text, that text judges alone.

    Args:
        calibration: blocks of calibration text, (samples, seq_len) int64.
        written: blocks that the dense model wrote, (count, seq_len) int64.
    """
    if written is None:
        return TrainingData(*hold_out(calibration))
    share = round((len(written) + len(calibration)) * HELD_OUT_SHARE)
    held = min(len(calibration), max(1, share))
    fit = torch.cat([written, calibration[:-held]])
    return TrainingData(fit, calibration[-held:], len(written))
