"""Text to choose layers by."""

import pytest
import torch


@pytest.fixture
def sample(text_blocks: torch.Tensor) -> torch.Tensor:
    """Ten blocks of the novel: no whole number of batches of four."""
    return text_blocks[::20][:10]
