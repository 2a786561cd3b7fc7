"""The record of a compression, and that of a whole run with the verdict of its gate; both come back as written."""

from typing import Literal

from pydantic import Field, ValidationError

from elder.errors import UserError
from elder.record.base import BASELINE, CANDIDATE, DENSE, Json, Number, Plain
from elder.record.measured import Perplexity, Row, Speed
from elder.record.training import Point, Scores, Trial


class Rule(Plain):
    """One rule of the gate.

    Attributes:
        rule: its name.
        value: what was measured; None where it is missing or not finite.
        limit: what it was held against.
        passed: whether it holds.
        reason: both in a sentence.
        always: no mode lets a candidate pass that breaks it.
    """

    rule: str
    value: bool | Number | None
    limit: bool | Number | None
    passed: bool
    reason: str
    always: bool = False


class Verdict(Plain):
    """What the gate says of a candidate."""

    mode: Literal["on", "dry-run", "off"]
    passed: bool
    enforced: bool = False
    rules: list[Rule] = Field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Say whether the gate keeps the candidate out of the registry."""
        if any(rule.always and not rule.passed for rule in self.rules):
            return True
        return self.mode == "on" and not self.passed

    @property
    def reasons(self) -> list[str]:
        """Return a sentence for each rule that was not held."""
        return [rule.reason for rule in self.rules if not rule.passed]


class ModelFacts(Plain):
    """The dense model.

    Attributes:
        name: as the user gave it.
        revision: commit of a Hub model.
        digest: sha256 over its weights, as they were loaded.
        num_layers: before the removal.
        parameters: before the removal.
        dtype: that it was loaded in.
        dequantised_from: the number format of its checkpoint, such as fp8, where that was quantised.
        file_sha256: of the GGUF file that it was read from.
        license: as it was published.
    """

    name: str
    revision: str | None = None
    digest: str | None = None
    num_layers: int | None = None
    parameters: int | None = None
    dtype: str | None = None
    dequantised_from: str | None = None
    file_sha256: str | None = None
    license: str | None = None


class Lineage(Plain):
    """Where a run comes from: packages and machine, data by digest, all parameters, commit and starter."""

    packages: dict[str, str] = Field(default_factory=dict)
    python: str | None = None
    platform: str | None = None
    device: str | None = None
    threads: int | None = None
    seed: int | None = None
    data: dict[str, str] = Field(default_factory=dict)
    blocks_sha256: str | None = None
    params: dict[str, Json] = Field(default_factory=dict)
    dvc_lock_sha256: str | None = None
    git_commit: str | None = None
    git_clean: bool | None = None
    started_by: str | None = None
    deployment: dict[str, Json] | None = None
    installed: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Json] = Field(default_factory=dict)


class Champion(Plain):
    """The present champion as the gate sees it: its numbers, or ``fault``, which says why there are none."""

    version: str
    url: str | None = None
    run_id: str | None = None
    perplexity: dict[str, Perplexity] = Field(default_factory=dict)
    protocol: dict[str, Json] = Field(default_factory=dict)
    protocol_digest: str | None = None
    fault: str | None = None


class CompressionRecord(Plain):
    """What one compression found and took: the content of ``elder.json``."""

    model: ModelFacts
    method: str | None = None
    recipe: dict[str, Json] = Field(default_factory=dict)
    num_layers: int | None = None
    removed: list[int]
    kept: list[int] = Field(default_factory=list)
    scores: Scores | None = None
    weights: Scores | None = None
    compensation: dict[str, Json] | None = None
    curve: list[Point] = Field(default_factory=list)
    search: list[Trial] = Field(default_factory=list)
    tokens: int | None = None
    tokens_seen: int = 0
    tokens_generated: int = 0
    flops: int = 0
    optimizer_steps: int = 0
    trainable_parameters: int = 0
    parameters_before: int | None = None
    parameters_after: int | None = None
    seconds: Number | None = None
    peak_memory_bytes: int | None = None
    lineage: Lineage = Lineage()
    sha256: str | None = None


class DataFacts(Plain):
    """Where the data came from: the source as it was found, and the DVC stages that made the files."""

    source: dict[str, Json] = Field(default_factory=dict)
    stages: dict[str, Json] = Field(default_factory=dict)


class Record(CompressionRecord):
    """What a whole run found: the content of ``record.json``."""

    run_id: str
    created: str
    rows: list[Row]
    speed: Speed | None = None
    champion: Champion | None = None
    gate: Verdict
    energy: dict[str, Json] | None = None
    data: DataFacts = DataFacts()
    artifact: dict[str, Json] | None = None
    model_version: str | None = None
    report: str | None = None

    @property
    def candidate(self) -> Row:
        """Return the row of the shallower model."""
        return self._row(CANDIDATE)

    @property
    def dense(self) -> Row:
        """Return the row of the dense model."""
        return self._row(DENSE)

    @property
    def baselines(self) -> list[Row]:
        """Return the rows of the methods shown beside the candidate."""
        return [row for row in self.rows if row.kind == BASELINE]

    def _row(self, kind: str) -> Row:
        for row in self.rows:
            if row.kind == kind:
                return row
        raise UserError(
            f"the record of run {self.run_id} has no row of the {kind} model"
        )


def read_record(tree: Json, place: str) -> Record:
    """Return a record that was read from JSON.

    Args:
        tree: the parsed JSON, which may hold anything.
        place: where it lies, for a sentence that refuses it.

    Raises:
        UserError: if it is no record of a run; the sentence names the first fault.
    """
    try:
        return Record.model_validate(tree)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "its content"
        raise UserError(
            f"{place} is no record of a run: {where}: {fault['msg']}"
        ) from None
