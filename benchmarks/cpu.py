"""What two settings of the process bring on a CPU: the same training steps with and without each, by turns.

    .venv/bin/python benchmarks/cpu.py > results.json

``memory``: glibc keeps large blocks. By default freed tensors above 32 MiB go back to the system at once, and each new
one is mapped, and cleared, again. ``spin``: threads of GNU OpenMP that wait for each other sleep soon. By default they
spin, and take from one another what a busy machine has left. Measured on an idle machine, and beside one process for
each processor that never rests.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from elder.process import CPU_SETTINGS, KEEP_MEMORY, SPIN_BRIEFLY

ROUNDS = 2
MODEL = "models/novels-llama"
SETTINGS = {
    "default": {},
    "memory": KEEP_MEMORY,
    "spin": SPIN_BRIEFLY,
    "both": CPU_SETTINGS,
}


def work() -> float:
    """Return the seconds that twenty steps of distillation take."""
    import torch

    from elder import params
    from elder.data import choose_blocks
    from elder.model.load import load_model
    from elder.recovery import recover, student_of
    from elder.training.data import training_data
    from elder.training.loop import TrainingRun

    dense, student = (
        load_model(params.Model(name=MODEL), dtype) for dtype in (None, torch.float32)
    )
    blocks = choose_blocks(Path("data/calibration.txt"), dense.tokenizer, 16, 256, 0)
    settings = params.Recover(
        epochs=5, batch=4, optimizer="muon", lr=1e-3, distil={"synthetic": 0}
    )
    started = time.perf_counter()
    run = TrainingRun("recover", 0, torch.bfloat16)
    learner = student_of(settings, student.model, dense.model)
    recover(learner, training_data(blocks), settings, run)
    return time.perf_counter() - started


def measure(neighbours: int) -> dict[str, dict]:
    """Return the seconds with each setting, and how many times as fast as the default each is by its best round."""
    seconds: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with ExitStack() as stack:
        for _ in range(neighbours):
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        for _ in range(ROUNDS):
            for name, extra in SETTINGS.items():
                command = [sys.executable, __file__, "work"]
                done = subprocess.run(
                    command,
                    env=os.environ | extra,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds[name].append(round(float(done.stdout), 2))
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "faster": {
            name: round(best["default"] / value, 2) for name, value in best.items()
        },
    }


def main() -> None:
    """Measure by turns and print one JSON object."""
    import torch

    processors = os.cpu_count() or 1
    found = {"idle": measure(0), "busy": measure(processors)}
    made = {
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/cpu.py",
        "processors": processors,
        "platform": platform.platform(),
        "torch": torch.__version__,
    }
    print(json.dumps(made | found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        print(work())
    else:
        main()
