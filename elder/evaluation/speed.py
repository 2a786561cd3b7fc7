"""How fast a model is and what memory it takes: prompt latency, generation, throughput, and a check of the cache.

Two models are timed in turns, iteration by iteration, so that a machine's moods fall on both alike.
"""

import copy
import math
import platform
import statistics
from dataclasses import replace
from typing import Any

import torch

from elder import params
from elder.device import device_of_model, is_out_of_memory, out_of_memory
from elder.errors import UserError
from elder.evaluation.bench import SEED, WARM_UP, generate, random_ids, run_bench
from elder.model.load import Loaded, context_length
from elder.progress import say
from elder.record import Json, Speed, SpeedFacts, SpeedRatio

AUTO_PROMPT = 2048  # tokens, where the context is no shorter


def measure(loaded: Loaded, settings: params.Speed) -> SpeedFacts:
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
    jobs = run_bench([loaded], settings, prompt_length([loaded], settings))
    return jobs[0].facts()


def measure_side_by_side(
    dense: Loaded, pruned: Loaded, settings: params.Speed
) -> Speed:
    """Measure two models in turns.

    Returns:
        ``dense`` and ``pruned`` as `measure`; ``ratio`` with ``prompt_speedup`` (dense over pruned latency) and
        ``throughput`` (pruned over dense), each the median of what the turns say, since what else the machine does
        changes between turns more than within one; ``memory`` and ``parameters`` (pruned over dense); ``protocol`` as
        `speed_protocol`.

    Raises:
        UserError: as `measure`, and if the models are on different devices.
    """
    models = [dense, pruned]
    devices = [str(device_of_model(loaded.model)) for loaded in models]
    if devices[0] != devices[1]:
        raise UserError(
            f"the models are on {devices[0]} and {devices[1]}; load both on one device to compare them"
        )
    slow, fast = run_bench(models, settings, prompt_length(models, settings))
    before, after = slow.facts(), fast.facts()
    ratio = SpeedRatio(
        prompt_speedup=_times_as_fast(slow.prompt_ms, fast.prompt_ms),
        throughput=_times_as_fast(slow.generate_ms, fast.generate_ms),
        memory=_ratio(after.peak_memory_bytes, before.peak_memory_bytes),
        parameters=_ratio(after.parameters, before.parameters),
    )
    protocol = speed_protocol(models, settings)
    return Speed(dense=before, pruned=after, ratio=ratio, protocol=protocol)


def speed_protocol(models: list[Loaded], settings: params.Speed) -> dict[str, Json]:
    """Say how speed is measured, so that another can repeat it, and what ``peak_memory_bytes`` means here."""
    device = device_of_model(models[0].model)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = (
            "the peak growth of the CUDA allocator over one prompt and one generation"
        )
    else:
        name = platform.processor() or platform.machine()
        memory = "the key/value cache at the end of one generation; activations are not counted"
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
        "memory": f"weights and buffers, and {memory}",
        "dtype": [str(loaded.dtype).removeprefix("torch.") for loaded in models],
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def prompt_length(models: list[Loaded], settings: params.Speed) -> int:
    """Return the prompt length that the settings mean for these models; ``auto``: 2,048, or their context if shorter.

    Raises:
        UserError: if the prompt, or generation, does not fit into the shortest context.
    """
    wanted = settings.prompt_tokens
    context = _shortest_context(models)
    if context is None:
        return AUTO_PROMPT if wanted == "auto" else wanted
    if settings.generate_prompt + settings.new_tokens > context:
        raise UserError(
            f"speed.generate_prompt {settings.generate_prompt} and speed.new_tokens {settings.new_tokens} together "
            f"exceed the model's context of {context} tokens; lower one of them"
        )
    if wanted == "auto":
        return min(AUTO_PROMPT, context)
    if wanted > context:
        raise UserError(
            f"speed.prompt_tokens {wanted} exceeds the model's context of {context} tokens; "
            f"give at most {context}, or auto"
        )
    return wanted


def _shortest_context(models: list[Loaded]) -> int | None:
    contexts = [context_length(loaded.model) for loaded in models]
    return min((tokens for tokens in contexts if tokens), default=None)


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

    Raises:
        UserError: if memory does not suffice.
    """
    model = _in_float32(loaded.model)
    loaded = replace(loaded, model=model)
    context = context_length(model) or math.inf
    new_tokens = int(min(new_tokens, context // 2))
    starts = random_ids(loaded, prompts, int(min(16, context - new_tokens)), seed)
    try:
        cached = generate(model, starts, new_tokens, use_cache=True)
        uncached = generate(model, starts, new_tokens, use_cache=False)
    except Exception as error:
        # a wrong layer index fails in as many ways as there are caches
        if is_out_of_memory(error):
            raise out_of_memory(error, "the check of generation") from None
        say(f"generation fails: {type(error).__name__}: {error}")
        return False
    return torch.equal(cached.sequences, uncached.sequences)


def _in_float32(model: Any) -> Any:
    """Return the model, or a copy where it is in another dtype."""
    if all(tensor.dtype == torch.float32 for tensor in model.parameters()):
        return model
    return copy.deepcopy(model).float()


def _times_as_fast(before: list[float], after: list[float]) -> float:
    return statistics.median(
        slow / fast for slow, fast in zip(before, after, strict=True)
    )


def _ratio(above: int | None, below: int | None) -> float | None:
    return above / below if above is not None and below else None
