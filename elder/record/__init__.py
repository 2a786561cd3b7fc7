"""What a run found, typed: the one schema that the flow fills in and that report, card, registry, audit and gate read.

A record is written once, as JSON, and read back with ``Record.model_validate``. Reading keeps every value as it was
written, integers included, and ``model_dump(mode="json", exclude_unset=True)`` gives it back unchanged: digests over
records that older versions wrote still hold.
"""

from elder.record.base import (
    BASELINE,
    CANDIDATE,
    DENSE,
    DOMAINS,
    Domain,
    Json,
    Number,
    Plain,
    finite,
    json_safe,
    plain,
)
from elder.record.measured import (
    BUDGET,
    Budget,
    Evaluation,
    LoadTrial,
    Mean,
    Perplexity,
    Repetition,
    Row,
    Speed,
    SpeedFacts,
    SpeedRatio,
    TaskResult,
    Weights,
)
from elder.record.run import (
    Champion,
    CompressionRecord,
    DataFacts,
    Lineage,
    ModelFacts,
    Record,
    Rule,
    Verdict,
    read_record,
)
from elder.record.training import Point, Round, Scores, Spent, Trial

__all__ = [
    "BASELINE",
    "BUDGET",
    "Budget",
    "CANDIDATE",
    "Champion",
    "CompressionRecord",
    "DENSE",
    "DOMAINS",
    "DataFacts",
    "Domain",
    "Evaluation",
    "Json",
    "Lineage",
    "LoadTrial",
    "Mean",
    "ModelFacts",
    "Number",
    "Perplexity",
    "Plain",
    "Point",
    "Record",
    "Repetition",
    "Round",
    "Row",
    "Rule",
    "Scores",
    "Speed",
    "SpeedFacts",
    "SpeedRatio",
    "Spent",
    "TaskResult",
    "Trial",
    "Verdict",
    "Weights",
    "finite",
    "json_safe",
    "plain",
    "read_record",
]
