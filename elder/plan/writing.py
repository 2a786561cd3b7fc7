"""What the dense model's writing takes, before layers are chosen and before a recovery."""

from dataclasses import replace

from elder.plan import work
from elder.plan.case import Case
from elder.plan.estimate import Estimate
from elder.plan.live import WEIGHTS
from elder.plan.simulate import simulate
from elder.training.synthesis import rows_at_once


def with_writing(
    case: Case, found: Estimate, blocks: int, keeps_states: bool = False
) -> Estimate:
    """Return a stage and the writing that it begins with.

    Args:
        case: what is planned.
        found: what else the stage takes.
        blocks: that are written.
        keeps_states: what enters the dense model's head is kept, of calibration blocks, too.
    """
    one = simulate(case.shape, case.layers, work.write(case.dtype))
    seq_len = case.shape.seq_len
    rows = min(rows_at_once(seq_len, one.peak[work.CACHE], case.gpu), blocks)
    most = case.settings.model.max_memory
    # out of memory halves them
    while most and rows > 1 and case.dense_bytes + rows * one.peak[work.CACHE] > most:
        rows //= 2
    cache = rows * one.peak[work.CACHE]
    passes = blocks
    if keeps_states:
        passes += case.samples
        hidden = case.shape.text.hidden_size
        cache += rows * seq_len * hidden * case.dtype.itemsize
    # each token reads all weights, and on average half of the cache
    moved = -(-blocks // rows) * seq_len * (case.dense_bytes + cache / 2)
    return replace(
        found,
        peaks=(*found.peaks, {WEIGHTS: case.dense_bytes, work.CACHE: cache}),
        flops=found.flops + one.flops * passes,
        moved=found.moved + moved,
    )
