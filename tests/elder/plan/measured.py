"""What stages of compressions really take, beside what the plan says: ``python -m tests.elder.plan.measured``.

Each stage runs by itself, in a process of its own, on a model of some tens of millions of weights. Counted is the
process's resident memory at its peak, above that before the stage: loading, the autograd graph and the allocator's own
are in it. Linux starts that count anew on demand; ``MALLOC_MMAP_THRESHOLD_`` lets the C library give back what is
freed.
"""

import gc
import json
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import accelerate.hooks  # noqa: F401 - code is none of what a stage takes
import torch
import torch._dynamo
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from elder.compression.job import open_job
from elder.compression.stages import STAGES
from elder.device import device_of
from elder.plan.machine import machine_here
from elder.plan.plan import case_of, make_plan
from elder.plan.result import size
from elder.process import prepare_libraries
from elder.settings import validate

Tree = dict[str, Any]
SHARED = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=8000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=4,
        **SHARED,
    ),
    # a large vocabulary, tied, capped logits, and a head of its own size
    "gemma": Gemma2Config(
        vocab_size=40_000,
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=128,
        **SHARED,
    ),
    "neox": GPTNeoXConfig(
        vocab_size=16_000,
        hidden_size=640,
        intermediate_size=2560,
        num_hidden_layers=5,
        num_attention_heads=10,
        **SHARED,
    ),
    "opt": OPTConfig(
        vocab_size=12_000,
        hidden_size=384,
        ffn_dim=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        word_embed_proj_dim=384,
        dropout=0.0,
        **SHARED,
    ),
}
CASES: dict[str, tuple[str, str, Tree]] = {
    "distil, all weights": ("llama", "recover", {}),
    "distil, one block at once": ("gemma", "recover", {"micro_batch": 1}),
    "next token, layers twice": (
        "neox",
        "recover",
        {"mode": "train", "gradient_checkpointing": True},
    ),
    "distil, adapters": ("opt", "recover", {"adapter_rank": 8}),
    "single layers": ("neox", "compensate", {}),
    "layer weights": ("llama", "learn", {}),
    "layer weights, from disk": ("gemma", "learn", {"offload": "disk"}),
}


def settings_of(case: str, folder: Path) -> Tree:
    """Return the parameters of a case."""
    _, stage, own = CASES[case]
    recover: Tree = {"epochs": 1, "batch": 2, "lr": 1e-3, "distil": {"synthetic": 0}}
    select: Tree = {"method": "elder" if stage == "learn" else "last", "layers": 1}
    # loading maps the file beside the weights: four blocks at once take more than that
    select |= {"elder": {"batch": 4}, "forward_batch": 4}
    (select if stage == "learn" else recover).update(own)
    return {
        "model": {"name": str(folder), "device": "cpu"},
        "calibration": {"samples": 4, "seq_len": 256},
        "select": select,
        "compensate": {"method": "refit" if stage == "compensate" else "none"},
        "recover": recover,
    }


def save(case: str, folder: Path) -> None:
    """Save the model of a case, untrained, and a tokenizer."""
    config = CONFIGS[CASES[case][0]]
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def blocks(path: Path) -> Path:
    """Write calibration blocks."""
    from safetensors.torch import save_file

    save_file({"ids": torch.randint(0, 8000, (4, 256))}, path)
    return path


def status(name: str) -> int:
    """Return bytes that the kernel tells of this process."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def measure(case: str) -> tuple[int, int]:
    """Run the stage of a case; return its bytes as they are measured, and as they are planned."""
    stage = CASES[case][1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(case, folder / "model")
        settings = validate(settings_of(case, folder / "model"))
        with open_job(
            folder / "work", settings, blocks(folder / "b.safetensors"), STAGES
        ) as job:
            for earlier in ("learn", "remove"):
                if stage != "learn":
                    job.run(earlier)
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
            before = status("VmRSS")
            job.run(stage)
            taken = status("VmHWM") - before
        planned_for = case_of(settings)
        machine = machine_here(device_of("cpu"), torch.float32, flops=1e12)
        plan, _ = make_plan(planned_for, machine, "model")
    found = {one.name: one.memory_bytes for one in plan.stages}
    (line,) = (one.line() for one in plan.stages if one.name == stage)
    print(f"{case}: {size(taken)} measured; planned: {line}", file=sys.stderr)
    return taken, found[stage]


def main() -> None:
    """Print {case: [bytes measured, bytes planned]}."""
    prepare_libraries()
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(CASES)
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = pool.map(measure, wanted, chunksize=1)
    print(json.dumps(dict(zip(wanted, found, strict=True))))


if __name__ == "__main__":
    main()
