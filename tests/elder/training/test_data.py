"""Which blocks a training learns from, and which judge what it tries out."""

import pytest
import torch

from elder.training.data import training_data
from elder.training.search import HELD_OUT_SHARE, hold_out


def rows(first: int, count: int) -> torch.Tensor:
    """Return blocks of two tokens that say which they are."""
    return torch.arange(first, first + count)[:, None].repeat(1, 2)


@pytest.mark.parametrize("samples", [2, 8, 13, 128])
@pytest.mark.parametrize("synthetic", range(8))
def test_up_to_seven_written_blocks_for_one_the_order_says_it(
    samples: int, synthetic: int
) -> None:
    calibration, written = rows(0, samples), rows(1000, synthetic * samples)
    data = training_data(calibration, written if synthetic else None)
    # written text first, then calibration text; the last eighth is held out
    everything = torch.cat([written, calibration])
    fit, held = hold_out(everything)
    assert torch.equal(data.fit, fit)
    assert torch.equal(data.held_out, held)
    assert torch.equal(data.blocks, everything)
    assert (data.calibration_blocks, data.tokens_written) == (samples, 2 * len(written))


@pytest.mark.parametrize("synthetic", [8, 9, 40])
def test_written_text_never_judges(synthetic: int) -> None:
    calibration, written = rows(0, 16), rows(1000, synthetic * 16)
    # an order would hold out more
    assert len(hold_out(torch.cat([written, calibration]))[1]) > 16
    data = training_data(calibration, written)
    assert torch.equal(data.held_out, calibration)
    assert torch.equal(data.fit, written)
    assert torch.equal(data.blocks, torch.cat([written, calibration]))
    assert data.calibration_blocks == 16


def test_an_eighth_of_all_blocks_judges() -> None:
    assert HELD_OUT_SHARE == 1 / 8
    # 16 blocks and 4 x 16 written ones: an eighth of 80
    assert training_data(rows(0, 16), rows(1000, 64)).held_out.flatten().tolist() == [
        index for index in range(6, 16) for _ in range(2)
    ]
