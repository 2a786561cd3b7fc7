"""What the stages of a compression find and take: one frozen model a stage, the content of its marker."""

from pydantic import Field

from elder.record import Json, Number, Plain, Scores, Spent


class StageResult(Plain):
    """What every stage says.

    Attributes:
        spent: what its training used; nothing where it trains nothing.
        flops: floating-point operations that it took, as `elder.training.flops` has them; of all processes.
        peak_memory_bytes: of the device, or of the process where that is the CPU.
        seconds: it took.
        files: {name: sha256} of the model folder that it left; empty where it left the model as it was.
    """

    spent: Spent = Field(default_factory=Spent)
    flops: int = 0
    peak_memory_bytes: int = 0
    seconds: Number = 0
    files: dict[str, str] = Field(default_factory=dict)


class Chosen(StageResult):
    """Which layers go, and why.

    Attributes:
        num_layers: of the dense model.
        removed: layers of the dense model, in order of removal.
        scores: what decided.
        weights_learnt: whether the scores are weights of layers that were learnt.
        tokens: of the calibration blocks.
    """

    num_layers: int
    removed: list[int]
    scores: Scores
    weights_learnt: bool
    tokens: int


class Learnt(Chosen):
    """The choice of layers, and what it was made on.

    Attributes:
        parameters: of the dense model.
        passed: of these, those that a token passes.
        weights_sha256: over the dense model's weights, as `elder.model.load.weights_digest`.
        revision: commit of a Hub model.
        dtype: of the dense model.
        seq_len: tokens in a calibration block.
        calibration_sha256: of the calibration text or of the file of blocks.
        blocks_sha256: of the blocks themselves.
        dequantised_from: the number format of the dense model's checkpoint, where it was quantised.
        file_sha256: of the GGUF file that the dense model was read from.
    """

    parameters: int
    passed: int = 0
    weights_sha256: str
    revision: str | None
    dtype: str
    seq_len: int
    calibration_sha256: str
    blocks_sha256: str
    dequantised_from: str | None = None
    file_sha256: str | None = None


class Trained(StageResult):
    """A regularisation or a recovery: ``spent`` says it all."""


class Removed(StageResult):
    """The model without its layers: its number of parameters and of layers."""

    parameters: int
    num_layers: int


class Tuned(StageResult):
    """What the recovery's trials chose; ``values`` is empty where nothing was tried."""

    values: dict[str, str | Number] = Field(default_factory=dict)


class Compensated(StageResult):
    """What a compensation found, None where there was none; ``spent`` counts what it trained, as a share of a model."""

    compensation: dict[str, Json] | None
