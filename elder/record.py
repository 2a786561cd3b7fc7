"""What a run found, typed: the one schema that the flow fills in and that report, card, registry, audit and gate read.

A record is written once, as JSON, and read back with ``Record.model_validate``. Reading keeps every value as it was
written, integers included, and ``model_dump(mode="json", exclude_unset=True)`` gives it back unchanged: digests over
records that older versions wrote still hold.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    Strict,
    ValidationError,
    model_serializer,
)

from elder.errors import UserError

Number = int | float
Json = Any  # what foreign libraries and users' settings put into a record: plain JSON values
Domain = Literal["in_domain", "out_of_domain"]
DOMAINS: dict[Domain, str] = {"in_domain": "in domain", "out_of_domain": "out of domain"}
CANDIDATE, DENSE, BASELINE = "candidate", "dense", "baseline"


class Plain(BaseModel):
    """A frozen part of a record; keys that this version does not know are kept, and no value is turned into another."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        strict=True,
        protected_namespaces=(),
        ser_json_inf_nan="constants",
    )


class Spent(BaseModel):
    """The budget a training used, search included; counted up while the training goes on.

    Attributes:
        tokens_seen: tokens passed forward and backward.
        optimizer_steps: steps taken.
        trainable_parameters: parameters that moved.
        tokens_generated: tokens that the dense model wrote, for the shallower one to learn from.
        curve: points of the run that was kept.
        search: one record for each trial of an automatic choice.
    """

    tokens_seen: int = 0
    optimizer_steps: int = 0
    trainable_parameters: int = 0
    tokens_generated: int = 0
    curve: list["Point"] = Field(default_factory=list)
    search: list["Trial"] = Field(default_factory=list)


class Point(Plain):
    """One optimiser step: ``loss`` in nats, and the learning rate of it."""

    stage: str | None = None
    step: int
    loss: Number
    lr: Number


class Trial(Plain):
    """One trial of an automatic choice: what was tried stands beside these as further keys, such as ``lr``."""

    stage: str
    held_out_loss: Number | None
    tokens: int
    chosen: bool = False

    @model_serializer(mode="wrap")
    def _in_order(self, write: SerializerFunctionWrapHandler) -> dict[str, Json]:
        """Write what was tried behind the stage, before what came of it."""
        found: dict[str, Json] = write(self)
        tried = {name: found.pop(name) for name in self.model_extra or {} if name in found}
        stage = {"stage": found.pop("stage")} if "stage" in found else {}
        return stage | tried | found


class Round(Plain):
    """One round of a selection.

    Attributes:
        removed: which went.
        values: the score of each layer, None where it was not offered.
        checked: (layer, loss without it) of the layers that the scores had shortlisted, where the loss decided.
    """

    removed: list[int]
    values: list[Number | None]
    checked: list[Annotated[tuple[int, Number], Strict(False)]] = Field(default_factory=list)


class Scores(Plain):
    """What a selection decided by: ``name`` says what the values are; the layer with the lowest goes."""

    name: str = "score"
    lower_goes: bool = True
    rounds: list[Round]


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


class Row(Plain):
    """One model of a comparison: what was measured, under which protocol, and the budget it took."""

    name: str
    kind: Literal["dense", "candidate", "baseline"]
    removed: list[int] = Field(default_factory=list)
    perplexity: dict[str, Perplexity] = Field(default_factory=dict)
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    task_mean: Mean | None = None
    parameters: int | None = None
    protocol_digest: str | None = None
    protocol: dict[str, Json] = Field(default_factory=dict)
    tokens_seen: int = 0
    tokens_generated: int = 0
    optimizer_steps: int = 0
    trainable_parameters: int = 0
    seconds: Number = 0
    peak_memory_bytes: int = 0


class Rule(Plain):
    """One rule of the gate; ``value`` is None where it is missing or not finite."""

    rule: str
    value: bool | Number | None
    limit: bool | Number | None
    passed: bool
    reason: str


class Verdict(Plain):
    """What the gate says of a candidate."""

    mode: Literal["on", "dry-run", "off"]
    passed: bool
    enforced: bool = False
    rules: list[Rule] = Field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Say whether the gate keeps the candidate out of the registry."""
        return self.mode == "on" and not self.passed

    @property
    def reasons(self) -> list[str]:
        """Return a sentence for each rule that was not held."""
        return [rule.reason for rule in self.rules if not rule.passed]


class ModelFacts(Plain):
    """The dense model: ``name`` as the user gave it, ``digest`` the sha256 of its weights."""

    name: str
    revision: str | None = None
    digest: str | None = None
    num_layers: int | None = None
    parameters: int | None = None
    dtype: str | None = None
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


class Speed(Plain):
    """Speed of dense and pruned model, and what else is asked of the saved one."""

    dense: SpeedFacts | None = None
    pruned: SpeedFacts | None = None
    ratio: SpeedRatio = SpeedRatio()
    protocol: dict[str, Json] = Field(default_factory=dict)
    generation_agrees: bool | None = None
    repetition: Repetition | None = None
    loads: LoadTrial | None = None


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
        raise UserError(f"the record of run {self.run_id} has no row of the {kind} model")


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
        raise UserError(f"{place} is no record of a run: {where}: {fault['msg']}") from None


def plain(value: BaseModel) -> dict[str, Json]:
    """Return a part of a record as plain values: just what was set, in the order of the schema.

    What was read from JSON comes back unchanged. What was measured may hold infinity: see `json_safe`.
    """
    return value.model_dump(mode="json", exclude_unset=True)


def json_safe(value: Json) -> Json:
    """Return plain values with None for every number that is not finite: JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {key: json_safe(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def finite(value: Json) -> bool:
    """Say whether a value is a finite number; a bool is none."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )
