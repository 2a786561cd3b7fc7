"""What is measured on both models, and what a candidate must hold."""

from typing import Literal

from pydantic import Field, field_validator

from elder.params.section import Auto, Section, long_enough, place


class Evaluate(Section):
    """What is measured on the dense and on the pruned model, under one protocol."""

    in_domain: str = Field(
        "data/in_domain.txt",
        description="text like the calibration text, disjoint from it",
    )
    out_of_domain: str = Field("data/held_out.txt", description="text from elsewhere")
    seq_len: int | Auto = Field(
        "auto", description="tokens in a block; auto: as in calibration"
    )
    max_tokens: int | None = Field(
        32_768, ge=1, description="tokens of each text at most; null: the whole text"
    )
    tasks: tuple[str, ...] = Field(("blimp",), description="lm-eval tasks or groups")
    task_data: str | None = Field(
        "data/tasks", description="folder of task definitions or of local datasets"
    )
    limit: int | None = Field(None, ge=1, description="items of each task at most")
    batch: int = Field(16, ge=1, description="blocks in a batch")
    baselines: tuple[str, ...] = Field(
        ("shortgpt", "sleb"), description="methods shown beside, without training"
    )
    _place = field_validator("in_domain", "out_of_domain")(place)
    _long_enough = field_validator("seq_len")(long_enough)


class Speed(Section):
    """How latency and throughput are measured."""

    prompt_tokens: int | Auto = Field(
        "auto",
        description="prompt length; auto: 2048, or the model's context if shorter",
    )
    prompt_iterations: int = Field(20, ge=1, description="timed prompts, batch 1")
    batch: int = Field(16, ge=1, description="sequences generated at once")
    generate_prompt: int = Field(
        64, ge=1, description="prompt tokens before generation"
    )
    new_tokens: int = Field(64, ge=1, description="tokens generated for each sequence")
    generate_iterations: int = Field(3, ge=1, description="timed generations")


class Gate(Section):
    """What a candidate must hold to be registered. A limit of null switches its rule off.

    In every mode a candidate is refused whose weights are not finite or not of the dense model's magnitude.
    """

    mode: Literal["on", "dry-run", "off"] = Field(
        "on",
        description="dry-run: judge and record; it and off refuse unsound weights only",
    )
    max_perplexity_ratio_in_domain: float | None = Field(
        1.5, gt=0, description="pruned over dense"
    )
    max_perplexity_ratio_out_of_domain: float | None = Field(
        1.5, gt=0, description="pruned over dense"
    )
    max_task_mean_loss: float | None = Field(
        0.05, description="loss of the mean over tasks, beyond its standard error"
    )
    max_task_loss: float | None = Field(
        0.15, description="loss of any single task, beyond its standard error"
    )
    min_prompt_speedup: float | None = Field(
        1.0, gt=0, description="dense prompt latency over pruned"
    )
    max_memory_ratio: float | None = Field(
        1.0, gt=0, description="peak memory, pruned over dense"
    )
    max_repetition: float | None = Field(
        0.1, description="share of repeated 4-grams in own text, pruned less dense"
    )
    check_generation: bool = Field(
        True, description="greedy generation with and without the cache must agree"
    )
    check_loads: bool = Field(
        True,
        description="must load and run in plain transformers, without this project",
    )
    engines: tuple[Literal["llama.cpp"], ...] = Field(
        (),
        description="engines that must say what transformers says: llama.cpp",
    )
    max_champion_ratio: float | None = Field(
        1.02, gt=0, description="perplexity out of domain over the present champion's"
    )
