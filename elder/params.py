"""Every number that a run depends on: one frozen section a step, unknown keys refused, all faults listed at once.

``params.yaml`` holds the same sections; ``--set section.key=value`` overrides one value.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer, field_validator

Auto = Literal["auto"]
Rate = Annotated[float, Field(gt=0)]
Strength = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A frozen group of parameters that refuses unknown keys."""

    # YAML reads an all-digit revision as a number, and 1e-3 as a string: both mean what the field says
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Model(Section):
    """Which model is compressed, and how it is loaded."""

    name: str = Field(
        "models/novels-llama", description="folder, Hub id, s3:// prefix or models:/name@alias"
    )
    revision: str | None = Field(None, description="Hub revision: a commit, tag or branch")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: as the checkpoint"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that comes with the model"
    )


class Calibration(Section):
    """The text that layers are judged and trained on."""

    source: str = Field(
        "data/calibration.txt",
        description="UTF-8 text file, folder saved by datasets, or Hub dataset",
    )
    config: str | None = Field(
        None, description="configuration of a Hub dataset, such as wikitext-2-raw-v1"
    )
    split: str = Field("train", description="split of a dataset")
    column: str = Field("text", description="text column of a dataset")
    revision: str | None = Field(
        None, description="Hub revision of the dataset; pinned and recorded"
    )
    samples: int = Field(128, ge=2, description="calibration blocks")
    seq_len: int | Auto = Field(
        "auto", description="tokens in a block; auto: 2048, or the model's context if shorter"
    )
    seed: int = Field(0, ge=0, description="seed of the choice of blocks and of all training")

    @field_validator("seq_len")
    @classmethod
    def _long_enough(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 8:
            raise ValueError("a block needs at least 8 tokens")
        return value


class Select(Section):
    """Which layers go. ``layers`` wins over ``ratio``."""

    method: str = Field(
        "elder", description="a selection method; an unknown name lists them all"
    )
    layers: int | None = Field(None, ge=1, description="remove exactly this many layers")
    ratio: float = Field(0.25, gt=0, lt=1, description="remove round(ratio x layers) layers")
    protect: tuple[int, ...] = Field((), description="layers never offered for removal")
    forward_batch: int = Field(
        8, ge=1, description="blocks in a batch where layers are only looked at"
    )
    place: Literal["residual", "output"] = Field(
        "residual", description="what a layer weight scales (elder)"
    )
    solver: Literal["proximal", "subgradient"] = Field(
        "proximal", description="how |S| is minimised (elder)"
    )
    iterative: bool = Field(
        True, description="learn the weights anew for each removed layer (elder)"
    )
    lambda1: Strength | Auto = Field(
        0.05, description="strength of |S|; auto: chosen on held-out blocks (elder)"
    )
    lr: float = Field(0.05, gt=0, description="learning rate of the layer weights (elder)")
    epochs: float = Field(
        0.3, gt=0, description="passes over the calibration blocks, all rounds together (elder)"
    )
    batch: int = Field(
        1,
        ge=1,
        description="blocks in a batch where weights are learnt (elder, shortened-taylor)",
    )
    shortlist: int = Field(
        4,
        ge=1,
        description="lightest layers of which the least missed goes; 1: the lightest (elder)",
    )
    merge_layers: int = Field(
        4, ge=2, description="layers that become one in a merge, C (laco)"
    )
    merge_range: tuple[int, int] | None = Field(
        None, description="merges stay within [L, H); null: [1, layers) (laco)"
    )
    merge_interval: int = Field(
        2, ge=1, description="how far below a merge the next is tried, I (laco)"
    )
    merge_samples: int = Field(
        16, ge=1, description="calibration blocks that judge a merge (laco)"
    )


class Training(Section):
    """What regularisation and recovery have in common."""

    epochs: float = Field(
        0.0, ge=0, description="passes over the calibration blocks; 0: skip this step"
    )
    batch: int = Field(8, ge=1, description="blocks in a batch")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: for the matrices inside the layers"
    )
    lr: Rate | Auto = Field(
        "auto", description="peak learning rate; auto: chosen on held-out blocks"
    )
    warmup: float = Field(
        0.03, ge=0, lt=1, description="share of the steps with a rising learning rate"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    adapter_rank: int = Field(
        0, ge=0, description="rank of LoRA adapters, merged afterwards; 0: train all weights"
    )
    gradient_checkpointing: bool = Field(
        False, description="less memory, more time: compute each layer twice"
    )


class Regularise(Training):
    """Stage 2: shrink what the selected layers add, so that it moves elsewhere before they go."""

    norm: Literal["l2", "l1"] = Field(
        "l2", description="norm of a layer's output minus its input, for each token"
    )
    relative: bool = Field(
        False, description="divide that norm by the norm of the input: free of scale"
    )
    lambda2: Strength | Auto = Field(
        "auto", description="strength; auto: chosen on held-out blocks"
    )
    anneal: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the steps in which the layers fade out; 0: they stay",
    )


class Compensate(Section):
    """Mend the shallower model without training it."""

    method: str = Field(
        "none", description="none, or a compensation; an unknown name lists them all"
    )
    ridge: float = Field(
        0.1, gt=0, description="pull of the map towards the identity, in mean squares (linear)"
    )
    batch: int = Field(8, ge=1, description="blocks in a batch")


class Recover(Training):
    """Train the shallower model on the calibration blocks."""

    mode: Literal["none", "train", "distil"] = Field(
        "distil", description="loss: next token, or the dense model's logits"
    )
    epochs: float = Field(
        6.3, ge=0, description="passes over the calibration blocks, the search for lr included"
    )
    batch: int = Field(4, ge=1, description="blocks in a batch")
    optimizer: Literal["adamw", "muon"] = Field(
        "muon", description="muon: for the matrices inside the layers"
    )
    next_token: float = Field(
        0.0, ge=0, le=1, description="share of next-token loss beside that of logits (distil)"
    )
    hidden: Strength = Field(
        0.0, description="weight of the match of the kept layers' hidden states (distil)"
    )
    synthetic: int = Field(
        4,
        ge=0,
        description="blocks that the dense model writes for each of calibration (distil)",
    )


class Evaluate(Section):
    """What is measured on the dense and on the pruned model, under one protocol."""

    in_domain: str = Field(
        "data/in_domain.txt", description="text like the calibration text, disjoint from it"
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


class Speed(Section):
    """How latency and throughput are measured."""

    prompt_tokens: int | Auto = Field(
        "auto", description="prompt length; auto: 2048, or the model's context if shorter"
    )
    prompt_iterations: int = Field(20, ge=1, description="timed prompts, batch 1")
    batch: int = Field(16, ge=1, description="sequences generated at once")
    generate_prompt: int = Field(64, ge=1, description="prompt tokens before generation")
    new_tokens: int = Field(64, ge=1, description="tokens generated for each sequence")
    generate_iterations: int = Field(3, ge=1, description="timed generations")


class Gate(Section):
    """What a candidate must hold to be registered. A limit of null switches its rule off."""

    mode: Literal["on", "dry-run", "off"] = Field(
        "on", description="dry-run: judge and record, but never refuse"
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
        True, description="must load and run in plain transformers, without this project"
    )
    max_champion_ratio: float | None = Field(
        1.02, gt=0, description="perplexity out of domain over the present champion's"
    )


class Store(Section):
    """Where the bytes go."""

    url: str = Field("store", description="local folder or s3://bucket/prefix")
    endpoint: str | None = Field(None, description="endpoint of an S3-compatible server")
    region: str | None = Field(None, description="region of the bucket")


class Registry(Section):
    """Where runs and versions are recorded."""

    name: str = Field("novels-llama-shallow", min_length=1, description="registered model name")
    tracking_uri: str = Field("sqlite:///mlflow.db", description="MLflow tracking and registry")
    experiment: str = Field("elder", min_length=1, description="MLflow experiment")


class Signing(Section):
    """How a published model is signed, in the format of OpenSSF Model Signing."""

    private_key: str | None = Field(
        "keys/signing.pem", description="EC key, made on first use; null: sign nothing"
    )
    keyless: bool = Field(
        False, description="sign with an identity, through Sigstore, instead of the key"
    )
    identity: str | None = Field(
        None, description="who must have signed, such as ci@example.org (keyless, audit)"
    )
    issuer: str | None = Field(
        None, description="who vouches for that: URL of its OIDC issuer (keyless, audit)"
    )


class Energy(Section):
    """Whether a run's energy is measured; nothing is sent anywhere."""

    measure: bool = Field(
        True, description="estimate what the whole machine takes during a run, with codecarbon"
    )
    country: str | None = Field(
        None, description="ISO 3166 code, such as DEU: its electricity's CO2; null: kWh alone"
    )


class Notify(Section):
    """Whom to tell how a run ended."""

    webhook: SecretStr | None = Field(
        None,
        description="address that gets a JSON object; never recorded; null: ELDER_WEBHOOK, where that is set",
    )
    events: tuple[Literal["success", "refusal", "failure"], ...] = Field(
        ("success", "refusal", "failure"), description="which ends to tell"
    )

    @field_serializer("webhook", when_used="json")
    def _never_recorded(self, _: SecretStr | None) -> None:
        """Leave the address out of all that is written: it may hold a secret, and does not change what a run makes."""


class Params(Section):
    """All sections of ``params.yaml``."""

    model: Model = Model()
    calibration: Calibration = Calibration()
    select: Select = Select()
    regularise: Regularise = Regularise()
    compensate: Compensate = Compensate()
    recover: Recover = Recover()
    evaluate: Evaluate = Evaluate()
    speed: Speed = Speed()
    gate: Gate = Gate()
    store: Store = Store()
    registry: Registry = Registry()
    notify: Notify = Notify()
    signing: Signing = Signing()
    energy: Energy = Energy()
