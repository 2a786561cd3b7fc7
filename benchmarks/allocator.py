"""What it brings to let glibc keep large blocks of memory on a CPU: the same training steps with and without, by turns.

    .venv/bin/python benchmarks/allocator.py

Freed tensors above 32 MiB go back to the system at once by default, and each new one is mapped, and cleared, again.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from elder.environment import KEEP_MEMORY

ROUNDS = 3
MODEL = "models/novels-llama"


def work() -> float:
    """Return the seconds that twenty steps of distillation take."""
    import torch

    from elder import params
    from elder.data import choose_blocks
    from elder.model import load_model
    from elder.recover import recover

    dense, student = (load_model(params.Model(name=MODEL), dtype) for dtype in (None, torch.float32))
    blocks = choose_blocks(Path("data/calibration.txt"), dense.tokenizer, 16, 256, 0)
    settings = params.Recover(epochs=5, batch=4, lr=1e-3, synthetic=0)
    started = time.perf_counter()
    recover(student.model, dense.model, blocks, settings, 0, torch.bfloat16)
    return time.perf_counter() - started


def main() -> None:
    """Measure by turns and print one JSON object."""
    seconds: dict[str, list[float]] = {"default": [], "kept": []}
    for _ in range(ROUNDS):
        for name, extra in (("default", {}), ("kept", KEEP_MEMORY)):
            command = [sys.executable, __file__, "work"]
            done = subprocess.run(command, env=os.environ | extra, capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout))
    best = {name: min(values) for name, values in seconds.items()}
    print(json.dumps({"seconds": seconds, "ratio": best["default"] / best["kept"]}))


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        print(work())
    else:
        main()
