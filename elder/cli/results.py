"""What the library's commands answer: with ``--json`` the fields, otherwise lines for people."""

import math

from elder.record import (
    CompressionRecord,
    Json,
    Number,
    Perplexity,
    Plain,
    Scores,
    SpeedFacts,
    SpeedRatio,
    TaskResult,
    Trial,
    plain,
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

    def lines(self) -> list[str]:
        """Say it for people."""
        count = f"{len(self.removed)} of {self.num_layers} layers"
        lines = [f"{self.method} on {self.model}: {count}"]
        for number, one in enumerate(self.scores.rounds, start=1):
            values = ["-" if value is None else f"{value:.4f}" for value in one.values]
            shown = "  ".join(values)
            lines.append(f"round {number}, {self.scores.name} by layer: {shown}")
        lines.append(f"removed, in order: {_listed(self.removed)}")
        return lines


class EvaluationResult(Perplexity):
    """Perplexity on a text, None without one, and tasks."""

    model: str
    tasks: dict[str, TaskResult]

    def lines(self) -> list[str]:
        """Say it for people."""
        from elder.compare.write import value_and_error

        lines = []
        if self.tokens:
            value = math.inf if self.perplexity is None else self.perplexity
            shown = value_and_error(value, self.stderr, 3)
            lines.append(f"perplexity {shown} on {self.tokens:,} tokens")
        for name, task in self.tasks.items():
            value = math.nan if task.value is None else task.value
            lines.append(
                f"{name}: {task.metric} {value_and_error(value, task.stderr, 4)}"
            )
        return lines


class SpeedResult(SpeedFacts):
    """How fast a model is, and its ratios to the one it was measured against."""

    model: str
    ratio: SpeedRatio
    against: str | None = None
    protocol: dict[str, Json] = {}

    def lines(self) -> list[str]:
        """Say it for people."""
        return [f"{key}: {value}" for key, value in plain(self).items()]


class ComparisonResult(Plain):
    """The rows of a comparison, and {row: why it could not be measured}."""

    output: str
    budget: Number
    rows: list[dict[str, Json]]
    failed: dict[str, str]


def compression_lines(record: CompressionRecord, output: str) -> list[str]:
    """Say for people what a compression found and took, and where the result lies."""
    before, after = record.parameters_before, record.parameters_after
    spent = f"{record.tokens_seen:,} tokens, {record.optimizer_steps:,} steps"
    return [
        f"removed layers, in order: {_listed(record.removed)} of {record.num_layers}",
        f"parameters: {before:,} before, {after:,} after",
        f"budget: {spent}, {record.seconds:.0f} s",
        f"saved in {output}; its README.md is the model card",
    ]


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))
