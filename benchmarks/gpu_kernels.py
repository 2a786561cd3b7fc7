"""What the head's own portions cost beside liger-kernel's fused ones, and what compiling layers gains, on one GPU.

    python benchmarks/gpu_kernels.py --out results/kernels.json          # liger-kernel where it is installed
    python benchmarks/gpu_kernels.py --tiny --out /tmp/kernels.json      # the same code on a CPU, in seconds

Heads: 8,192 positions, forward and backward, LLaMA2-7B's and Gemma 3 270M's; with and without gradients of the head.
Layers: a step of distillation of all weights, ten layers of LLaMA2-7B's width of which two go, 4 x 2,048 tokens.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from elder import params
from elder.device import device_of
from elder.environment import environment
from elder.model.forward import seed_everything
from elder.model.head import by_position, logits_of_states
from elder.model.layers import remove_layers
from elder.progress import say
from elder.recovery import student_of
from elder.recovery.base import CATALOGUE
from elder.training.loop import Batch, gradients
from elder.training.losses import divergences
from elder.training.optim import Optimizer
from elder.training.ready import compiled, trainable

TIMES = 3
BF16 = torch.bfloat16


def timed(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Return {ms, gb}: of a call once it is warm, and the most memory that it took beyond what was there."""
    run()
    here = {"cuda": torch.cuda}.get(device.type)
    if here:
        here.synchronize()
        here.empty_cache()
        here.reset_peak_memory_stats()
    before = here.memory_allocated() if here else 0
    started = time.perf_counter()
    for _ in range(TIMES):
        run()
    if here:
        here.synchronize()
    seconds = (time.perf_counter() - started) / TIMES
    peak = here.max_memory_allocated() - before if here else 0
    return {"ms": round(1000 * seconds, 1), "gb": round(peak / 1e9, 2)}


def head(
    loss: str, way: str, learns: bool, sizes: tuple[int, int, int], device: torch.device
) -> Callable[[], Tensor]:
    """Return a call that goes through a head forward and backward.

    Args:
        loss: ``kl`` to another head, or ``ce``.
        way: ``own`` or ``liger``.
        learns: the head has gradients, and float32 weights.
        sizes: vocabulary, hidden, positions.
        device: that computes.
    """
    vocabulary, hidden, positions = sizes
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    with device:
        model = LlamaForCausalLM(config).to(torch.float32 if learns else BF16)
        states, other = (torch.randn(positions, hidden, dtype=BF16) for _ in range(2))
        words = torch.randint(vocabulary, (positions,))
        dense = 0.02 * torch.randn(vocabulary, hidden, dtype=BF16)
    model.requires_grad_(learns)

    def divergence(mine: Tensor, its: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.linear(its, dense)
        return divergences(logits_of_states(model, mine), wanted)

    def cross_entropy(mine: Tensor, targets: Tensor) -> Tensor:
        logits = logits_of_states(model, mine).float()
        return F.cross_entropy(logits, targets, reduction="none")

    def by_liger(mine: Tensor) -> Tensor:
        from liger_kernel.transformers import (
            LigerFusedLinearCrossEntropyLoss,
            LigerFusedLinearJSD,
        )

        weight = model.lm_head.weight
        if loss == "ce":
            return LigerFusedLinearCrossEntropyLoss()(weight, mine, words)
        return LigerFusedLinearJSD(jsd_beta=0.0)(mine, weight, other, dense, words)

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        mine = states.clone().requires_grad_()
        with torch.autocast(device.type, dtype=BF16):
            if way == "liger":
                found = by_liger(mine)
            elif loss == "ce":
                found = by_position(model, cross_entropy, mine, words).mean()
            else:
                found = by_position(model, divergence, mine, other).mean()
        found.backward()
        return found

    return run


def step(compile: bool, tiny: bool, device: torch.device) -> dict[str, float]:
    """Time steps of distillation."""
    width = 64 if tiny else 4096
    config = LlamaConfig(
        vocab_size=500 if tiny else 32_000,
        hidden_size=width,
        intermediate_size=11_008 * width // 4096,
        num_hidden_layers=10,
        num_attention_heads=width // (16 if tiny else 128),
    )
    with device:
        dense = LlamaForCausalLM(copy.deepcopy(config)).to(BF16).requires_grad_(False)
        student = LlamaForCausalLM(config)
    remove_layers(student, [1, 2])
    learner = student_of(params.Recover(mode="distil"), student, dense)
    loss = CATALOGUE.find("distil").function(learner)
    ids = torch.randint(500, (4, 64 if tiny else 2048))
    with (
        trainable(student, 0, 0),
        compiled(student, compile),
        compiled(dense, compile),
    ):
        optimizer = Optimizer(student, "adamw", 1e-5, False, 0.0)

        def one() -> None:
            gradients(student, Batch(ids, loss, BF16, 0), len(ids))
            optimizer.step(1e-3)

        return timed(one, device)


def main() -> None:
    """Measure all, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    seed_everything(0)
    device = device_of("auto")
    sizes = {"7B": (32_000, 4096, 8192), "Gemma 3 270M": (262_144, 640, 8192)}
    if given.tiny:
        sizes = {"tiny": (500, 64, 128)}
    ways = ["own", *(["liger"] if find_spec("liger_kernel") else [])]
    rows: list[dict[str, Any]] = []
    for name, size in sizes.items():
        for loss, learns in [("kl", False), ("kl", True), ("ce", True)]:
            for way in ways:
                row = {"head": name, "loss": loss, "learns": learns, "way": way}
                rows.append(row | timed(head(loss, way, learns, size, device), device))
                say(str(rows[-1]))
    for compile in [False] if given.tiny else [False, True]:
        rows.append({"step": "ten layers", "compiled": compile})
        rows[-1] |= step(compile, given.tiny, device)
        say(str(rows[-1]))
    told = environment(str(device))
    given.out.write_text(json.dumps({**told, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
