"""Running a model on blocks of tokens: losses, mixed precision, determinism and peak memory, in one place."""

import os
import resource
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F


def seed_everything(seed: int) -> None:
    """Seed torch and ask for deterministic kernels, so that one seed gives one result on one machine."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def device_of_model(model: Any) -> torch.device:
    """Return the device that token ids must be on."""
    return next(model.parameters()).device


def mixed_precision(model: Any, compute: torch.dtype) -> AbstractContextManager:
    """Compute in ``compute`` where the weights are kept in another dtype."""
    weights = next(model.parameters()).dtype
    if weights == compute or compute == torch.float32:
        return nullcontext()
    return torch.autocast(device_of_model(model).type, dtype=compute)


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a batch, (batch, tokens, vocabulary)."""
    return model(input_ids=ids.to(device_of_model(model)), use_cache=False).logits


def next_token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the next-token cross-entropy of each block in nats: the mean over all its positions, (batch,)."""
    targets = ids[:, 1:].to(logits.device)
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(dim=1)


@torch.no_grad()
def block_losses(model: Any, blocks: torch.Tensor, batch: int, compute: torch.dtype | None = None) -> torch.Tensor:
    """Return the next-token loss of each block, (blocks,) float64 on the CPU, without gradients."""
    model.eval()
    losses = []
    with mixed_precision(model, compute or next(model.parameters()).dtype):
        for ids in blocks.split(batch):
            losses.append(next_token_losses(logits_of(model, ids), ids).double().cpu())
    return torch.cat(losses)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
