"""What the library's commands answer with ``--json``."""

from elder.record import (
    Json,
    Number,
    Perplexity,
    Plain,
    Scores,
    SpeedFacts,
    SpeedRatio,
    TaskResult,
    Trial,
)


class SelectionResult(Plain):
    """Which layers can go, and what the choice took; ``removed`` is in order of removal."""

    method: str
    model: str
    num_layers: int
    removed: list[int]
    scores: Scores
    tokens: int
    tokens_seen: int
    search: list[Trial]
    seconds: Number
    peak_memory_bytes: int


class EvaluationResult(Perplexity):
    """Perplexity on a text, None without one, and tasks."""

    model: str
    tasks: dict[str, TaskResult]


class SpeedResult(SpeedFacts):
    """How fast a model is, and its ratios to the one it was measured against."""

    model: str
    ratio: SpeedRatio
    against: str | None = None
    protocol: dict[str, Json] = {}


class ComparisonResult(Plain):
    """The rows of a comparison, and {row: why it could not be measured}."""

    output: str
    budget: Number
    rows: list[dict[str, Json]]
    failed: dict[str, str]
