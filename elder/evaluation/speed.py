"""How fast a model is and what memory it takes: prompt latency, generation, throughput, and a check of the cache.

Two models are timed in turns, iteration by iteration, so that a machine's moods fall on both alike.
"""

import copy
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from elder import params
from elder.device import device_of_model, is_out_of_memory, out_of_memory
from elder.errors import UserError
from elder.model.layers import text_config
from elder.model.load import Loaded, context_length, parameter_count
from elder.progress import Meter, meter, say

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
        memory: bytes, see `_memory`.
    """

    model: Any
    prompt: torch.Tensor
    starts: torch.Tensor
    new_tokens: int
    prompt_ms: list[float] = field(default_factory=list)
    generate_ms: list[float] = field(default_factory=list)
    memory: int = 0

    def result(self) -> dict[str, Any]:
        """Return the numbers as they stand in the record."""
        generate_ms = statistics.median(self.generate_ms)
        return {
            "prompt_ms": statistics.median(self.prompt_ms),
            "prompt_ms_stdev": statistics.stdev(self.prompt_ms)
            if len(self.prompt_ms) > 1
            else None,
            "tokens_per_second": len(self.starts) * self.new_tokens / generate_ms * 1000,
            "generate_ms": generate_ms,
            "peak_memory_bytes": self.memory,
            "parameters": parameter_count(self.model),
        }


def measure(loaded: Loaded, settings: params.Speed) -> dict[str, Any]:
    """Measure one model.

    Args:
        loaded: the model.
        settings: lengths, batch and iterations.

    Returns:
        ``prompt_ms`` (median; batch 1, logits at all positions, cache filled) and its ``prompt_ms_stdev`` (None for
        one iteration); ``generate_ms`` (median of a whole batch) and ``tokens_per_second``; ``peak_memory_bytes``,
        as `speed_protocol` defines it; ``parameters``.

    Raises:
        UserError: if a prompt with what is generated after it exceeds the context, or memory does not suffice.
    """
    return _bench([loaded], settings)[0].result()


def compare(dense: Loaded, pruned: Loaded, settings: params.Speed) -> dict[str, Any]:
    """Measure two models in turns.

    Returns:
        ``dense`` and ``pruned`` as `measure`; ``ratio`` with ``prompt_speedup`` (dense over pruned latency) and
        ``throughput`` (pruned over dense), each the median of what the turns say, since what else the machine does
        changes between turns more than within one; ``memory`` and ``parameters`` (pruned over dense); ``protocol`` as
        `speed_protocol`.

    Raises:
        UserError: as `measure`, and if the models are on different devices.
    """
    devices = [str(device_of_model(loaded.model)) for loaded in (dense, pruned)]
    if devices[0] != devices[1]:
        raise UserError(
            f"the models are on {devices[0]} and {devices[1]}; load both on one device to compare them"
        )
    jobs = _bench([dense, pruned], settings)
    before, after = (job.result() for job in jobs)
    return {
        "dense": before,
        "pruned": after,
        "ratio": {
            "prompt_speedup": _times_as_fast(*(job.prompt_ms for job in jobs)),
            "throughput": _times_as_fast(*(job.generate_ms for job in jobs)),
            "memory": after["peak_memory_bytes"] / before["peak_memory_bytes"],
            "parameters": after["parameters"] / before["parameters"],
        },
        "protocol": speed_protocol([dense, pruned], settings),
    }


def speed_protocol(models: list[Loaded], settings: params.Speed) -> dict[str, Any]:
    """Say how speed is measured, so that another can repeat it, and what ``peak_memory_bytes`` means here."""
    device = device_of_model(models[0].model)
    cuda = device.type == "cuda"
    memory = (
        "weights and buffers, and the peak growth of the CUDA allocator over one prompt and one generation"
        if cuda
        else "weights and buffers, and the key/value cache at the end of one generation; activations are not counted"
    )
    return {
        "prompt_tokens": prompt_length(models, settings),
        "prompt_batch": 1,
        "prompt_iterations": settings.prompt_iterations,
        "generate_batch": settings.batch,
        "generate_prompt": settings.generate_prompt,
        "new_tokens": settings.new_tokens,
        "generate_iterations": settings.generate_iterations,
        "warm_up": {"prompt": WARM_UP, "generate": 1},
        "statistic": "median; of two models, the median of the turns' ratios",
        "order": "in turns",
        "memory": memory,
        "dtype": [str(loaded.dtype).removeprefix("torch.") for loaded in models],
        "device": torch.cuda.get_device_name(device)
        if cuda
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def prompt_length(models: list[Loaded], settings: params.Speed) -> int:
    """Return the prompt length that the settings mean for these models; ``auto``: 2,048, or their context if shorter.

    Raises:
        UserError: if the prompt, or generation, does not fit into the shortest context.
    """
    contexts = [context_length(loaded.model) for loaded in models]
    context = min((value for value in contexts if value), default=None)
    if context is None:
        return 2048 if settings.prompt_tokens == "auto" else settings.prompt_tokens
    if settings.generate_prompt + settings.new_tokens > context:
        raise UserError(
            f"speed.generate_prompt {settings.generate_prompt} and speed.new_tokens {settings.new_tokens} together "
            f"exceed the model's context of {context} tokens; lower one of them"
        )
    if settings.prompt_tokens == "auto":
        return min(2048, context)
    if settings.prompt_tokens > context:
        raise UserError(
            f"speed.prompt_tokens {settings.prompt_tokens} exceeds the model's context of {context} tokens; "
            f"give at most {context}, or auto"
        )
    return settings.prompt_tokens


@torch.inference_mode()
def generation_agrees(
    loaded: Loaded, prompts: int = 4, new_tokens: int = 32, seed: int = SEED
) -> bool:
    """Say whether greedy generation gives the same tokens with the key/value cache as without it.

    Checked in float32 (on a copy, where the model is in another dtype): the two differ by rounding in bfloat16, which
    has ties. A model that cannot generate at all does not agree either; the reason is said on stderr.

    Args:
        loaded: the model.
        prompts: number of random prompts.
        new_tokens: tokens generated after each; fewer where the context is too short.
        seed: of the prompts.
    """
    model = loaded.model
    if any(tensor.dtype != torch.float32 for tensor in model.parameters()):
        model = copy.deepcopy(model).float()
    context = context_length(model) or math.inf
    new_tokens = int(min(new_tokens, context // 2))
    starts = _random_ids(model, prompts, int(min(16, context - new_tokens)), seed)
    try:
        cached, plain = (
            _generate(model, starts, new_tokens, use_cache=use) for use in (True, False)
        )
    except Exception as error:  # a wrong layer index fails in as many ways as there are caches
        if is_out_of_memory(error):
            raise out_of_memory(error, "the check of generation") from None
        say(f"generation fails: {type(error).__name__}: {error}")
        return False
    return torch.equal(cached.sequences, plain.sequences)


def _bench(models: list[Loaded], settings: params.Speed) -> list[Job]:
    length = prompt_length(models, settings)
    jobs = []
    for loaded in models:
        model = loaded.model.eval()
        prompt = _random_ids(model, 1, length, SEED)
        starts = _random_ids(model, settings.batch, settings.generate_prompt, SEED + 1)
        jobs.append(Job(model, prompt, starts, settings.new_tokens))
    turns = settings.prompt_iterations + settings.generate_iterations + WARM_UP + 1
    try:
        with torch.inference_mode(), meter("speed", turns * len(jobs)) as step:
            _in_turns(jobs, settings, step)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "memory does not suffice to measure speed; lower speed.batch or speed.prompt_tokens"
        ) from None
    return jobs


def _in_turns(jobs: list[Job], settings: params.Speed, step: Meter) -> None:
    for turn in range(WARM_UP + settings.prompt_iterations):
        for job in jobs:
            spent = _milliseconds(
                job.model, partial(job.model, input_ids=job.prompt, use_cache=True)
            )
            job.prompt_ms += [spent] if turn >= WARM_UP else []
            step()
    for job in jobs:
        job.memory = _memory(job)
        step()
    for _ in range(settings.generate_iterations):
        for job in jobs:
            job.generate_ms.append(
                _milliseconds(
                    job.model, partial(_generate, job.model, job.starts, job.new_tokens)
                )
            )
            step()


def _times_as_fast(before: list[float], after: list[float]) -> float:
    return statistics.median(slow / fast for slow, fast in zip(before, after, strict=True))


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


def _generate(model: Any, starts: torch.Tensor, new_tokens: int, use_cache: bool = True) -> Any:
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


def _memory(job: Job) -> int:
    """Return bytes that are this model's alone, though others stand beside it: see `speed_protocol`."""
    weights = sum(tensor.nbytes for tensor in [*job.model.parameters(), *job.model.buffers()])
    device = device_of_model(job.model)
    if device.type != "cuda":
        cache = _generate(job.model, job.starts, job.new_tokens).past_key_values
        return weights + _cache_bytes(cache)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    job.model(input_ids=job.prompt, use_cache=True)
    _generate(job.model, job.starts, job.new_tokens)
    return weights + torch.cuda.max_memory_allocated(device) - before


def _cache_bytes(cache: Any) -> int:
    """Return the bytes of all tensors that the layers of a cache of transformers hold."""
    tensors = [
        value for layer in getattr(cache, "layers", ()) for value in vars(layer).values()
    ]
    return sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))


def _random_ids(model: Any, rows: int, tokens: int, seed: int) -> torch.Tensor:
    """Return random token ids on the model's device: the same for any two models with one vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(text_config(model).vocab_size, (rows, tokens), generator=generator).to(
        device_of_model(model)
    )
