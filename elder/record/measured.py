"""What was measured of a model: perplexity, tasks, speed, its own text; and the row that sums one model up."""

from typing import Literal

from pydantic import Field

from elder.record.base import Json, Number, Plain


class Perplexity(Plain):
    """Perplexity on one text.

    Attributes:
        perplexity: exp of ``nll``; infinite, or None in JSON, where a model is utterly broken.
        stderr: its standard error, None for a single block.
        nll: the mean next-token loss in nats.
        tokens: how many were read.
        blocks: in how many blocks.
    """

    perplexity: Number | None
    stderr: Number | None = None
    nll: Number | None = None
    tokens: int | None = None
    blocks: int | None = None


class TaskResult(Plain):
    """One lm-eval task: its headline metric; ``value`` None if not finite, ``stderr`` None if lm-eval has none."""

    metric: str
    value: Number | None
    stderr: Number | None = None
    version: Number | str | None = None
    higher_is_better: bool = True


class Mean(Plain):
    """A mean over tasks and its standard error, None where a task has none."""

    value: Number | None
    stderr: Number | None = None


class Evaluation(Plain):
    """What one model is worth, and under which protocol that was measured.

    Attributes:
        perplexity: {domain: perplexity}.
        tasks: {name: result}.
        task_mean: mean over the tasks of which more is better; None without any.
        protocol: all that two results must share to be comparable.
        protocol_digest: sha256 over it.
        seconds: what measuring took.
        parameters: of the model.
    """

    perplexity: dict[str, Perplexity] = Field(default_factory=dict)
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    task_mean: Mean | None = None
    protocol: dict[str, Json]
    protocol_digest: str
    seconds: Number
    parameters: int


class Budget(Plain):
    """What making one model took; zeros for the dense one, and ``flops`` 0 where they were not counted yet."""

    tokens_seen: int = 0
    tokens_generated: int = 0
    flops: int = 0
    optimizer_steps: int = 0
    trainable_parameters: int = 0
    seconds: Number = 0
    peak_memory_bytes: int = 0


BUDGET = tuple(Budget.model_fields)


class MeasuredModel(Plain):
    """One model of a comparison: what was measured, and under which protocol."""

    name: str
    kind: Literal["dense", "candidate", "baseline"]
    removed: list[int] = Field(default_factory=list)
    perplexity: dict[str, Perplexity] = Field(default_factory=dict)
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    task_mean: Mean | None = None
    parameters: int | None = None
    protocol_digest: str | None = None
    protocol: dict[str, Json] = Field(default_factory=dict)


# of two bases, pydantic writes the fields of the last first: the budget ends a row
class Row(Budget, MeasuredModel):
    """A measured model and the budget it took."""


class SpeedFacts(Plain):
    """How fast one model is; see `elder.evaluation.speed.measure` for the units."""

    prompt_ms: Number
    prompt_ms_stdev: Number | None = None
    tokens_per_second: Number | None = None
    generate_ms: Number | None = None
    peak_memory_bytes: int | None = None
    parameters: int | None = None


class SpeedRatio(Plain):
    """Two models side by side: speed-ups are dense over pruned time, memory and parameters pruned over dense."""

    prompt_speedup: Number | None = None
    throughput: Number | None = None
    memory: Number | None = None
    parameters: Number | None = None


class Repetition(Plain):
    """Shares of repeated 4-grams in both models' own text: so many prompts, so many new tokens of each, sampled."""

    dense: Number
    pruned: Number
    prompts: int | None = None
    new_tokens: int | None = None
    temperature: Number | None = None


class LoadTrial(Plain):
    """Whether plain transformers loads and runs a saved model, and if not, why."""

    ok: bool
    fault: str | None = None


class Weights(Plain):
    """The weights of the saved model beside the dense model's.

    Attributes:
        finite: whether all are.
        factor: by which its matrices are larger than the largest of their kind in the dense model, or smaller than the
            smallest; of the kind that is furthest out, and 1 where none is; None where it is infinite.
        matrix: that kind: a weight's name with ``*`` for its layer.
    """

    finite: bool
    factor: Number | None = None
    matrix: str | None = None


class EngineTrial(Plain):
    """Whether another engine says of a saved model what transformers says; see `elder.engines.trial.compare`."""

    engine: str
    format: str | None = None
    divergence: Number | None = None
    largest_difference: Number | None = None
    same_tokens: int | None = None
    tokens: int | None = None
    same_ids: bool | None = None
    fault: str | None = None


class Speed(Plain):
    """Speed of dense and pruned model, and what else is asked of the saved one."""

    dense: SpeedFacts | None = None
    pruned: SpeedFacts | None = None
    ratio: SpeedRatio = SpeedRatio()
    protocol: dict[str, Json] = Field(default_factory=dict)
    generation_agrees: bool | None = None
    repetition: Repetition | None = None
    loads: LoadTrial | None = None
    weights: Weights | None = None
    engines: list[EngineTrial] = Field(default_factory=list)
