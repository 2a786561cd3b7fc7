"""Time, peak memory and FLOP utilisation of each stage at LLaMA2-7B's shape on one GPU; `benchmarks/gpu.sh` runs it.

benchmarks/gpu.sh select --out results
benchmarks/gpu.sh all --shape tiny --text BOOKS --out /tmp/tiny      # the same code on a CPU, in seconds
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_report import TRAINED, Results, flops_per_token
from gpu_stages import ROOT, WEIGHTS, Bench, Shape, shape_of, stages_of
from real_size import measure, peak_memory, seconds_of
from transformers import LlamaConfig

from elder.device import device_of, is_out_of_memory
from elder.environment import environment
from elder.errors import UserError
from elder.model.forward import seed_everything
from elder.process import prepare_libraries
from elder.progress import say

Stage = Callable[[], dict[str, Any]]


def train_sister(
    bench: Bench, text: Path, work: Path, earlier: dict[str, Any]
) -> dict[str, Any]:
    """Train the larger sister with models/train.py, which keeps a checkpoint; a call that runs out of time goes on.

    Args:
        bench: shape, device and time.
        text: folder of books.
        work: folder for the checkpoint and the model.
        earlier: record of a call that was cut.
    """
    work.mkdir(parents=True, exist_ok=True)
    config = work / "config.json"
    config.write_text(json.dumps(bench.shape.sister))
    command = [
        sys.executable,
        ROOT / "models/train.py",
        "--text",
        text,
        "--config",
        config,
        "--output",
        work,
    ]
    started = time.monotonic()
    try:
        done = subprocess.run(
            [*command, "--device", str(bench.device)],
            stdout=sys.stderr,
            timeout=max(1.0, bench.ends - started),
        )
    except subprocess.TimeoutExpired:
        done = None
    seconds = earlier.get("seconds", 0.0) + time.monotonic() - started
    if done is None:
        return {
            "seconds": seconds,
            "error": f"stopped after {seconds:.0f} s; the same command goes on",
        }
    if done.returncode:
        return {
            "error": f"models/train.py ended with status {done.returncode}; its last lines say why"
        }
    record = json.loads((work / "model" / "training.json").read_text())
    tokens = record["log"][-1]["tokens"]
    shape, data = record["config"]["model"], record["config"]["data"]
    config = LlamaConfig(**{**shape, "vocab_size": data["vocab_size"]})
    flops = tokens * flops_per_token(
        config, data["context"], shape["num_hidden_layers"], 1, TRAINED
    )
    return {
        "seconds": seconds,
        "model_flops": flops,
        "mfu": flops / seconds / bench.peak if bench.peak else None,
        "perplexity": record["log"][-1]["perplexity"],
        "parameters": record["parameters"],
        "tokens": tokens,
        "log": record["log"],
        "note": f"{record['parameters']:,} parameters, {tokens:,} tokens, perplexity "
        f"{record['log'][-1]['perplexity']:.2f}; the seconds hold tokenising and evaluation too",
    }


def run_default(part: str) -> dict[str, Any]:
    """Run the whole default recipe on a part of `real_size.py`, to its end."""
    found = measure(part)
    told = ", ".join(
        f"{row['stage']} {row['seconds']:.0f} s" for row in found["stages"]
    )
    return {
        "seconds": seconds_of(found),
        "peak_memory_bytes": peak_memory(found),
        "note": told,
        **found,
    }


def run_stage(stage: Stage) -> dict[str, Any]:
    """Run one stage; what the card cannot do is a result, too."""
    try:
        return stage()
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"error": f"out of memory: {str(error).split('. ')[0]}"}


def run_part(args: argparse.Namespace, shape: Shape, device: torch.device) -> None:
    """Measure what is not measured yet of one part, and print the summary."""
    about = {
        "title": shape.title,
        "shape": args.shape,
        "command": os.environ.get("GPU_COMMAND", " ".join(sys.argv)),
        "date": datetime.now(UTC).date().isoformat(),
        "weights": str(WEIGHTS).removeprefix("torch."),
        **environment(str(device)),
    }
    results, bench = Results(args.out, about), Bench(shape, device, args.seconds)
    if args.part == "train":
        earlier = results.tree["stages"].get("train", {})
        stages: dict[str, Stage] = {
            "train": partial(train_sister, bench, args.text, args.work, earlier)
        }
    elif args.part == "default":
        part = "tiny" if args.shape == "tiny" else "smollm2-long"
        stages = {f"default, {part}": partial(run_default, part)}
    else:
        stages = stages_of(args.part, bench)
    waiting = {name: stage for name, stage in stages.items() if not results.done(name)}
    bench.stages_left = len(waiting)
    for name, stage in waiting.items():
        say(f"{name} on {about['device']}")
        results.put(name, run_stage(stage))
        bench.stages_left -= 1
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print((args.out / "summary.md").read_text())


def main() -> None:
    """Parse the arguments and run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part",
        choices=["select", "regularise", "recover", "speed", "default", "train"],
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("OUT", ROOT / "build/gpu")),
        help="for results",
    )
    parser.add_argument("--shape", choices=["7b", "tiny"], default="7b")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--seconds",
        type=float,
        default=480,
        help="time to fill; a part ends within ten minutes",
    )
    parser.add_argument(
        "--text",
        type=Path,
        help="folder of books, for the part train; without it that part is left",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build/gpu-train",
        help="for the part train's checkpoint",
    )
    args = parser.parse_args()
    prepare_libraries()
    seed_everything(0)
    try:
        if args.part == "train" and args.text is None:
            say("train: left out; name a folder of books with --text")
            return
        shape, device = shape_of(args.shape), device_of(args.device)
        if args.shape == "7b" and device.type == "cpu":
            raise UserError(
                "there is no GPU here, and LLaMA2-7B's shape needs one; give --shape tiny to try the code"
            )
        run_part(args, shape, device)
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
