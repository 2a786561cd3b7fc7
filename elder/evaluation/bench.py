"""Models on a bench: each is timed and weighed in turn, iteration by iteration, so that all share a machine's moods."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from elder import params
from elder.device import device_of_model, is_out_of_memory
from elder.errors import UserError
from elder.model.forward import cache_bytes
from elder.model.layers import text_config
from elder.model.load import Loaded, parameter_count
from elder.progress import Meter, meter
from elder.record import SpeedFacts

WARM_UP = 2  # untimed prompts before the timed ones; before generation, the measurement of memory warms up
SEED = 0  # of the random token ids


@dataclass
class Job:
    """One model on the bench, and what was measured of it.

    Attributes:
        model: the model.
        prompt: token ids of the prompt, (1, tokens).
        starts: token ids that generation starts from, (batch, tokens).
        new_tokens: tokens generated for each sequence.
        prompt_ms: milliseconds of each timed prompt.
        generate_ms: milliseconds of each timed generation.
        memory: bytes, see `memory_of`.
    """

    model: Any
    prompt: torch.Tensor
    starts: torch.Tensor
    new_tokens: int
    prompt_ms: list[float] = field(default_factory=list)
    generate_ms: list[float] = field(default_factory=list)
    memory: int = 0

    def facts(self) -> SpeedFacts:
        """Return the numbers as they stand in the record."""
        generate_ms = statistics.median(self.generate_ms)
        tokens = len(self.starts) * self.new_tokens
        spread = statistics.stdev(self.prompt_ms) if len(self.prompt_ms) > 1 else None
        return SpeedFacts(
            prompt_ms=statistics.median(self.prompt_ms),
            prompt_ms_stdev=spread,
            tokens_per_second=tokens / generate_ms * 1000,
            generate_ms=generate_ms,
            peak_memory_bytes=self.memory,
            parameters=parameter_count(self.model),
        )

    def run_prompt(self) -> None:
        """Pass the prompt through the model: logits at all positions, cache filled."""
        self.model(input_ids=self.prompt, use_cache=True)

    def run_generation(self) -> Any:
        """Generate from the starts; see `generate`."""
        return generate(self.model, self.starts, self.new_tokens)


def run_bench(
    models: list[Loaded], settings: params.Speed, prompt_tokens: int
) -> list[Job]:
    """Measure models in turns; each gets the same random prompt.

    Args:
        models: one or several.
        settings: batch and iterations.
        prompt_tokens: length of the prompt.

    Raises:
        UserError: if memory does not suffice.
    """
    jobs = []
    for loaded in models:
        model = loaded.model.eval()
        prompt = random_ids(loaded, 1, prompt_tokens, SEED)
        starts = random_ids(
            loaded,
            settings.batch,
            settings.generate_prompt,
            SEED + 1,
        )
        jobs.append(Job(model, prompt, starts, settings.new_tokens))
    turns = settings.prompt_iterations + settings.generate_iterations + WARM_UP + 1
    try:
        with torch.inference_mode(), meter("speed", turns * len(jobs)) as step:
            in_turns(jobs, settings, step)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "memory does not suffice to measure speed; lower speed.batch or speed.prompt_tokens"
        ) from None
    return jobs


def in_turns(jobs: list[Job], settings: params.Speed, step: Meter) -> None:
    """Time the prompts, weigh the models, time generation: always one job after the other."""
    for turn in range(WARM_UP + settings.prompt_iterations):
        for job in jobs:
            spent = _milliseconds(job.model, job.run_prompt)
            if turn >= WARM_UP:
                job.prompt_ms.append(spent)
            step()
    for job in jobs:
        job.memory = memory_of(job)
        step()
    for _ in range(settings.generate_iterations):
        for job in jobs:
            job.generate_ms.append(_milliseconds(job.model, job.run_generation))
            step()


def _milliseconds(model: Any, run: Callable[[], Any]) -> float:
    device = device_of_model(model)
    _synchronise(device)
    started = time.perf_counter()
    run()
    _synchronise(device)
    return (time.perf_counter() - started) * 1000


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def generate(
    model: Any, starts: torch.Tensor, new_tokens: int, use_cache: bool = True
) -> Any:
    """Generate exactly ``new_tokens`` greedily, whatever ends a text; returns ``sequences`` and ``past_key_values``."""
    return model.generate(
        input_ids=starts,
        attention_mask=torch.ones_like(starts),
        do_sample=False,
        num_beams=1,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=0,
        use_cache=use_cache,
        return_dict_in_generate=True,
    )


def memory_of(job: Job) -> int:
    """Return bytes that are this model's alone, though others stand beside it.

    What counts beside weights and buffers: `elder.evaluation.speed.speed_protocol`.
    """
    weights = sum(
        tensor.nbytes for tensor in [*job.model.parameters(), *job.model.buffers()]
    )
    device = device_of_model(job.model)
    if device.type != "cuda":
        return weights + cache_bytes(job.run_generation().past_key_values)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    job.run_prompt()
    job.run_generation()
    return weights + torch.cuda.max_memory_allocated(device) - before


def random_ids(loaded: Loaded, rows: int, tokens: int, seed: int) -> torch.Tensor:
    """Return random token ids on the model's device, which begin as its texts do.

    They are the same for any two models with one tokenizer.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = text_config(loaded.model).vocab_size
    ids = torch.randint(vocabulary, (rows, tokens), generator=generator)
    first = loaded.bos[:tokens]
    ids[:, : len(first)] = torch.tensor(first, dtype=torch.int64)
    return ids.to(device_of_model(loaded.model))
