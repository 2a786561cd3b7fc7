"""The losses that shallower models are trained with, as plain functions of tensors."""

import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

ORDERS = {"l1": 1, "l2": 2}
SMALLEST_SQUARE = 1e-12  # of a hidden state that is divided by
SMALLEST_NORM = 1e-6


def divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence from the teacher's next-token distribution to the student's, in nats.

    Args:
        student: logits, (positions, vocabulary), any float dtype.
        teacher: logits of the same shape, without gradient.

    Returns:
        (positions,) float32.
    """
    mine = F.log_softmax(student.float(), dim=-1)
    wanted = F.log_softmax(teacher.float(), dim=-1)
    return F.kl_div(mine, wanted, reduction="none", log_target=True).sum(dim=-1)


def state_mismatch(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the relative mean square between hidden states: ||s - t||^2 / ||t||^2 of each token, the mean over tokens.

    Each token is divided by its own size, since a few tokens of large models are so large that they would
    hide the rest.

    Args:
        student: hidden states, (batch, tokens, hidden), any float dtype.
        teacher: hidden states of the same shape, without gradient.

    Returns:
        Scalar float32.
    """
    wanted = teacher.float()
    difference = student.float() - wanted
    errors = difference.square().sum(dim=-1)  # (batch, tokens)
    sizes = wanted.square().sum(dim=-1)
    shares = errors / sizes.clamp(min=SMALLEST_SQUARE)
    return shares.mean()


def residual_norm(
    entering: Tensor, leaving: Tensor, norm: str, relative: bool
) -> Tensor:
    """Return how much one layer changes the hidden state: || f(h) - h ||_q, the mean over tokens.

    Args:
        entering: hidden state h, (batch, tokens, hidden).
        leaving: f(h), the same shape.
        norm: ``l2`` (un-squared) or ``l1``, over the hidden dimension.
        relative: divide each token's norm by ||h|| in the same norm.

    Returns:
        Scalar float32.
    """
    order = ORDERS[norm]
    change = leaving - entering
    sizes = vector_norm(change.float(), ord=order, dim=-1)  # (batch, tokens)
    if relative:
        before = vector_norm(entering.float(), ord=order, dim=-1)
        sizes = sizes / before.clamp(min=SMALLEST_NORM)
    return sizes.mean()
