"""The stages that `benchmarks/gpu.py` measures: each calls the library's own functions on a model of random weights.

The weights are random since speed and memory do not depend on their values. A stage is run on a few blocks to warm up
and to see how long a block takes, then on as many as its share of the part's time leaves room for.
"""

import copy
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu_report import (
    FORWARD,
    FROZEN,
    TRAINED,
    flops_per_token,
    peak_flops,
    sleb_passes,
)
from transformers import AutoModelForCausalLM, LlamaConfig

from elder import params
from elder.compression.layers import select_layers
from elder.device import memory_of, peak_memory_bytes
from elder.environment import environment
from elder.evaluation.speed import measure_side_by_side
from elder.model.layers import remove_layers, twin
from elder.model.load import Loaded, parameter_count
from elder.plan.case import Case
from elder.plan.machine import machine_here
from elder.plan.plan import make_plan
from elder.progress import say
from elder.record import plain
from elder.recovery import recover, student_of
from elder.selection.layer_weights import LayerWeightSettings
from elder.settings import validate
from elder.training.data import training_data
from elder.training.loop import TrainingRun
from elder.training.regularise import regularise
from elder.training.synthesis import Writing
from elder.training.teacher import known_states

ROOT = Path(__file__).parents[1]
SEED = 0
WEIGHTS = torch.bfloat16
FULL_BYTES = (
    16  # of a trained float32 weight: itself, its gradient, and two moments of Adam
)
PUBLISHED = {  # of OPT-13B (arXiv 2505.18232)
    0.25: {"prompt_speedup": 1.33, "throughput": 1.30},
    0.5: {"prompt_speedup": None, "throughput": 1.75},
}


@dataclass(frozen=True)
class Shape:
    """A size of model and of work.

    Attributes:
        title: what the summary calls it.
        config: of the model.
        samples: calibration blocks.
        seq_len: tokens in a block.
        batch: blocks in a step.
        rank: of the adapters.
        speed: the section ``speed``.
        sister: configuration that models/train.py trains.
    """

    title: str
    config: LlamaConfig
    samples: int
    seq_len: int
    batch: int
    rank: int
    speed: params.Speed
    sister: dict[str, Any]


def shape_of(name: str) -> Shape:
    """Return LLaMA2-7B with the papers' protocol, or something that a CPU does in seconds."""
    sister = json.loads((ROOT / "models/novels-llama-24/train.json").read_text())
    protocol = params.Speed(
        prompt_tokens=2048,
        prompt_iterations=50,
        batch=64,
        generate_prompt=64,
        new_tokens=128,
        generate_iterations=3,  # published: 10
    )
    if name == "7b":
        config = LlamaConfig(
            vocab_size=32_000,
            hidden_size=4096,
            intermediate_size=11_008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=4096,
        )
        return Shape("LLaMA2-7B's shape", config, 128, 2048, 4, 16, protocol, sister)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=8,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    protocol = params.Speed(
        prompt_tokens=32,
        prompt_iterations=2,
        batch=2,
        generate_prompt=4,
        new_tokens=4,
        generate_iterations=2,
    )
    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    sister["model"] |= small | {"num_hidden_layers": 2}
    sister["data"] |= {"context": 32, "vocab_size": 300}
    sister["recipe"] |= {"steps": 4, "batch": 2, "warmup": 1, "evaluate_every": 2}
    return Shape("A tiny shape", config, 8, 32, 2, 2, protocol, sister)


class Bench:
    """What the stages of one part share: shape, device, and the time that is left.

    Attributes:
        shape: size of model and work.
        device: where all of it runs.
        ends: `time.monotonic()` at which the part should be over.
        stages_left: stages of the part that are still to be measured, the current one included.
    """

    def __init__(self, shape: Shape, device: torch.device, seconds: float) -> None:
        self.shape, self.device, self.ends, self.stages_left = (
            shape,
            device,
            time.monotonic() + seconds,
            1,
        )
        self.layers = shape.config.num_hidden_layers
        self.peak = peak_flops(environment(str(device))["device"])

    def build(self, dtype: torch.dtype = WEIGHTS) -> Any:
        """Return a dense model with random weights, the same ones each time, made on the device itself."""
        torch.manual_seed(SEED)
        with self.device:
            return AutoModelForCausalLM.from_config(
                copy.deepcopy(self.shape.config), dtype=dtype
            ).eval()

    def spread(self, share: float) -> list[int]:
        """Return evenly spread layers that make up a share of all; which ones changes neither time nor memory."""
        count = round(share * self.layers)
        return [(2 * index + 1) * self.layers // (2 * count) for index in range(count)]

    def fits(self, trained: int) -> bool:
        """Say whether float32 weights, gradients and Adam's moments fit, with a fifth on top for what is computed."""
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory
        else:
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 1.2 * FULL_BYTES * trained <= memory

    def measure(
        self,
        run: Callable[[torch.Tensor], float],
        unit: int,
        compile: bool = False,
    ) -> dict[str, Any]:
        """Time a stage that takes so much for each block.

        Args:
            run: does the stage on blocks of (n, seq_len), and returns its model FLOPs.
            unit: n is a multiple of it.
            compile: the first run compiles, and says nothing about the time.
        """
        shape = self.shape
        generator = torch.Generator().manual_seed(SEED)
        blocks = torch.randint(
            shape.config.vocab_size, (shape.samples, shape.seq_len), generator=generator
        )
        compiling = self._timed(run, blocks[:unit])[0] if compile else None
        per_block = self._timed(run, blocks[:unit])[0] / unit
        left = 0.9 * (self.ends - time.monotonic()) / self.stages_left
        count = min(shape.samples, max(1, int(left / per_block / unit)) * unit)
        say(f"{count} of {shape.samples} blocks, at most {per_block:.2f} s each")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        seconds, flops = self._timed(run, blocks[:count])
        return {
            "seconds": seconds,
            "blocks": count,
            "blocks_in_all": shape.samples,
            "seconds_for_all_blocks": seconds * shape.samples / count,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "model_flops": flops,
            "mfu": flops / seconds / self.peak if self.peak else None,
            "seconds_of_first_run": compiling,
        }

    def _timed(
        self, run: Callable[[torch.Tensor], float], blocks: torch.Tensor
    ) -> tuple[float, float]:
        self._synchronise()
        started = time.perf_counter()
        flops = run(blocks)
        self._synchronise()
        return time.perf_counter() - started, flops

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def flops(
        self,
        tokens: int,
        layers: float,
        heads: float = 1,
        times: tuple[int, int] = FORWARD,
    ) -> float:
        """Return the model FLOPs of so many tokens; see `flops_per_token`."""
        return tokens * flops_per_token(
            self.shape.config, self.shape.seq_len, layers, heads, times
        )

    def select(self, method: str) -> dict[str, Any]:
        """Choose a quarter of the layers; elder with the published lambda1 and half an epoch a round."""
        shape = self.shape
        learning = LayerWeightSettings(
            batch=shape.batch,
            epochs=0.5 * round(0.25 * self.layers),
            lambda1=5e-3,
            shortlist=1,
        )
        chosen = params.Select(
            method=method, ratio=0.25, forward_batch=shape.batch, elder=learning
        )
        loaded = Loaded(self.build(), None, "random weights", None, WEIGHTS)

        def run(blocks: torch.Tensor) -> float:
            record = select_layers(loaded, blocks, params.Params(select=chosen))
            removed, learnt = record.removed, record.spent.tokens_seen
            # one round for each layer that goes: L, L - 1, ... layers are passed
            if learnt:
                return self.flops(
                    learnt, self.layers - (len(removed) - 1) / 2, 1, FROZEN
                )
            passes = (
                sleb_passes(self.layers, removed)
                if method == "sleb"
                else (self.layers, 1)
            )
            return self.flops(blocks.numel(), *passes)

        return self.measure(run, 2 * shape.batch if method == "elder" else shape.batch)

    def regularise(self, rank: int, compile: bool) -> dict[str, Any]:
        """Train the dense model for three epochs so that a quarter of its layers comes to do nothing."""
        model = self.build(WEIGHTS if rank else torch.float32)
        settings = self._fitted(
            "regularise", rank, compile, epochs=3, lr=2e-5, lambda2=1e-3
        )

        def run(blocks: torch.Tensor) -> float:
            plan = TrainingRun("regularise", SEED, WEIGHTS)
            data = training_data(blocks)
            spent = regularise(model, self.spread(0.25), data, settings, plan)
            return self.flops(
                spent.tokens_seen, self.layers, 1, FROZEN if rank else TRAINED
            )

        return self._noted(
            self.measure(run, self.shape.batch, compile), model, settings
        )

    def recover(self, rank: int, compile: bool) -> dict[str, Any]:
        """Distil the dense model into one with a quarter of the layers less, for six epochs."""
        dense = self.build().requires_grad_(False)
        student = twin(dense) if rank else self.build(torch.float32)
        remove_layers(student, self.spread(0.25))
        own = {"mode": "distil", "epochs": 6, "optimizer": "adamw", "lr": 1e-5}
        settings = self._fitted("recover", rank, compile, **own)

        def run(blocks: torch.Tensor) -> float:
            plan = TrainingRun("recover", SEED, WEIGHTS)
            with TemporaryDirectory() as folder:
                kept = Path(folder, "states")
                known = known_states(dense, blocks, Writing(0, SEED), kept)
                learner = student_of(settings, student, dense, states=known)
                spent = recover(learner, training_data(blocks), settings, plan)
            times = FROZEN if rank else TRAINED
            left = student.config.num_hidden_layers
            learning = self.flops(spent.tokens_seen, left, 1, times)
            # the dense model: its layers once a block, its head in each step
            once = self.flops(blocks.numel(), self.layers, 0)
            return learning + once + self.flops(spent.tokens_seen, 0)

        return self._noted(
            self.measure(run, self.shape.batch, compile), student, settings
        )

    def remove(self) -> dict[str, Any]:
        """Take a quarter of the layers out."""
        model = self.build()
        started = time.perf_counter()
        remove_layers(model, self.spread(0.25))
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "parameters_after": parameter_count(model)}

    def _fitted(self, section: str, rank: int, compile: bool, **own: Any) -> Any:
        """Return a training's settings as the plan fits them into what the device has."""
        shape = self.shape
        tree = {
            "calibration": {"samples": shape.samples, "seq_len": shape.seq_len},
            "select": {"ratio": 0.25},
            "compensate": {"method": "none"},
            "regularise": {"epochs": 0},
            "recover": {"mode": "none"},
            section: own
            | {"batch": shape.batch, "adapter_rank": rank, "compile": compile},
        }
        config = copy.deepcopy(shape.config)
        config.dtype = WEIGHTS
        case = Case(validate(tree), config, memory_of(self.device))
        machine = machine_here(self.device, WEIGHTS, flops=1.0)
        return getattr(make_plan(case, machine, shape.title)[1], section)

    def _noted(self, record: dict[str, Any], model: Any, settings: Any) -> Any:
        rank = settings.adapter_rank
        words = [
            f"adapters of rank {rank} on bf16 weights"
            if rank
            else "all weights, in float32",
            f"{settings.micro_batch or settings.batch} of {settings.batch} blocks at once",
            f"{parameter_count(model):,} parameters",
        ]
        if settings.gradient_checkpointing:
            words.append("gradient checkpointing")
        if settings.compile:
            words.append("layers compiled")
        return {**record, "adapter_rank": rank, "note": "; ".join(words)}

    def speed(self, share: float) -> dict[str, Any]:
        """Time prompt and generation of the dense model and of one with a share of its layers less, in turns."""
        dense, pruned = self.build(), self.build()
        remove_layers(pruned, self.spread(share))
        both = [
            Loaded(model, None, "random weights", None, WEIGHTS)
            for model in (dense, pruned)
        ]
        found = plain(measure_side_by_side(*both, self.shape.speed))
        return {
            **found,
            "layers": self.layers,
            "removed": len(self.spread(share)),
            "published": PUBLISHED[share],
        }


def stages_of(part: str, bench: Bench) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the stages of a part by name; those that train all weights only where they fit."""
    with torch.device("meta"):
        parameters = parameter_count(
            AutoModelForCausalLM.from_config(copy.deepcopy(bench.shape.config))
        )
    ways = {"adapters": (bench.shape.rank, False)}
    if bench.fits(parameters):
        ways["all weights"] = (0, False)
    if bench.device.type == "cuda":  # a CPU's compiler takes longer than the tiny shape
        ways |= {f"{name}, compiled": (rank, True) for name, (rank, _) in ways.items()}
    if part == "select":
        return {
            f"select, {method}": partial(bench.select, method)
            for method in ("shortgpt", "elder", "sleb")
        }
    if part == "regularise":
        return {
            f"regularise, {name}": partial(bench.regularise, *way)
            for name, way in ways.items()
        }
    if part == "recover":
        training = {
            f"recover, {name}": partial(bench.recover, *way)
            for name, way in ways.items()
        }
        return {"remove": bench.remove, **training}
    return {f"speed, {share:.0%}": partial(bench.speed, share) for share in PUBLISHED}
