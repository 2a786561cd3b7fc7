"""What the default recipe takes on models of 1B to 405B, by the plan, and how far the plan is from what is measured.

``python benchmarks/sizes.py`` writes docs/sizes.md. No weights are needed, and no network: the shapes are those of
published models. ``--measured FILE`` takes measurements that were made before.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from transformers import LlamaConfig

from elder.params import Params
from elder.plan.case import Case
from elder.plan.machine import Machine
from elder.plan.result import duration, size
from elder.plan.selection import choosing
from elder.plan.stages import compensating, recovering
from elder.settings import validate
from elder.training.synthesis import SHARE_OF_GPU

PAGE = Path(__file__).parents[1] / "docs" / "sizes.md"
# a GPU of so many bytes writes text with 4 GiB of keys and values; a larger one takes more, because it has it
WRITER = SHARE_OF_GPU * 4 * 2**30
# 35 % of an H100's 989 TFLOP/s in bf16; its trainings reached 27 to 46 % (benchmarks/results/gpu-h100.md)
GPU = Machine("one H100", False, 80 * 10**9, 0, 3.5e14, 3e12, 10**12, 2e10)
SHAPES = {  # published model: vocabulary, hidden, inner, layers, heads, key/value heads
    "Llama 3.2 1B": (128_256, 2048, 8192, 16, 32, 8),
    "Llama 2 7B": (32_000, 4096, 11_008, 32, 32, 32),
    "Llama 2 13B": (32_000, 5120, 13_824, 40, 40, 40),
    "Llama 3.1 70B": (128_256, 8192, 28_672, 80, 64, 8),
    "Llama 3.1 405B": (128_256, 16_384, 53_248, 126, 128, 8),
}
WAYS: dict[str, dict[str, object]] = {
    "all weights": {},
    "adapters of rank 16, layers computed twice": {
        "adapter_rank": 16,
        "gradient_checkpointing": True,
    },
}
HEAD = """# What models of each size need

The default recipe at 25 %: a quarter of the layers goes; 128 calibration blocks of 2,048 tokens, weights in bfloat16,
one block at once. Memory is what tensors take on the device at the moment at which most live, in GB of 10^9 bytes.
Beside a GPU, in the machine's own memory, lie hidden states for `refit`, and a shallower model while it is read. On the
disk lie what the dense model makes of each block, and the copies of trained weights that trials begin from. Times are
for one H100 at {rate:.0f} TFLOP/s, 35 % of its peak in bfloat16, as an estimate: trainings reached 27 to 46 % there
(`benchmarks/results/gpu-h100.md`). Each stage is planned for one device that has the memory; several can share
its weights, gradients and optimiser (`docs/many-devices.md`). With adapters, much of a recovery's memory is the cache
of the texts that the dense model writes before it: 4 GiB here, a fifth of a larger GPU's memory there.

`elder plan MODEL` says it for your model, blocks and machine. `elder compress MODEL --max-memory 24GB` takes the way
that fits, and says so; `elder run` does it with `--set model.max_memory=24GB`. What keeps the result comes first: fewer
blocks at once, then layers computed twice; then adapters; and where even one block does not fit, a compensation is left
out. This page is made by `python benchmarks/sizes.py`.

"""
FOOT = """
## Predicted and measured

Stages on small models with random weights, each in a process of its own on a CPU: the most that the process held in
memory, above what it held before the stage, with glibc giving back what is freed. `tests/elder/plan` holds the
difference below 15 %.

| stage | measured | planned | planned / measured |
| --- | ---: | ---: | ---: |
"""


def case_of(shape: str, way: dict[str, object]) -> Case:
    """Return the case of a model's shape, one block at once."""
    vocabulary, hidden, inner, layers, heads, kv_heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape == "Llama 3.2 1B",
        dtype="bfloat16",
    )
    recover = {"micro_batch": 1, **way}
    tree = {
        "calibration": {"seq_len": 2048},
        "compensate": {"batch": 1},
        "recover": recover,
    }
    settings: Params = validate(tree)
    return Case(settings, config, WRITER)


def rows(shape: str) -> list[str]:
    """Return the rows of one model."""
    choice = choosing(case_of(shape, {}), at_once=1)
    learn = choice.entry(False, GPU.seconds(choice))
    mending = compensating(case_of(shape, {}))
    assert mending is not None
    mend = mending.entry(False, GPU.seconds(mending))
    first = f"**{shape}** | {size(learn.memory_bytes)} | {duration(learn.seconds or 0)}"
    first += f" | {size(mend.memory_bytes)} | {duration(mend.seconds or 0)}"
    lines = []
    for number, (way, changes) in enumerate(WAYS.items()):
        found = recovering(case_of(shape, changes))
        assert found is not None
        recover = found.entry(False, GPU.seconds(found))
        cells = [
            " | | | | " if number else first,
            way,
            size(recover.memory_bytes),
            size(recover.host_bytes),
            duration(recover.seconds or 0),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        print(shape, way, recover.line(), flush=True)
    return lines


def measurements(kept: Path | None) -> list[str]:
    """Return the rows of what is measured."""
    if kept is None:
        command = [sys.executable, "-m", "tests.elder.plan.measured"]
        env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        text = subprocess.run(command, env=env, stdout=-1, text=True, check=True).stdout
    else:
        text = kept.read_text(encoding="utf-8")
    lines = []
    for case, (taken, plan) in json.loads(text).items():
        lines.append(f"| {case} | {size(taken)} | {size(plan)} | {plan / taken:.2f} |")
    return lines


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write docs/sizes.md.")
    parser.add_argument("--measured", type=Path)
    given = parser.parse_args()
    table = [
        "| model | choosing layers: memory | time | refit: memory | time | recovery | memory | beside | time |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for shape in SHAPES:
        table += rows(shape)
    head = HEAD.format(rate=GPU.flops / 1e12)
    foot = FOOT + "\n".join(measurements(given.measured))
    PAGE.write_text(head + "\n".join(table) + f"\n{foot}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
