"""How a model is made shallower: which layers go, and what is trained before and after."""

from typing import Literal

from pydantic import Field

from elder.params.catalogue import AUTO, COMPENSATIONS, NONE, RECOVERIES, SELECTIONS
from elder.params.section import Auto, Choice, Rate, Section, Strength

MENDING = "refit"  # the compensation that ``auto`` stands for
MOST_WRITTEN = 4  # blocks for each of calibration: more were never tried


class Select(Choice):
    """Which layers go. ``layers`` wins over ``ratio``."""

    catalogue = SELECTIONS

    method: str = Field(
        "elder", description="a selection method; an unknown name lists them all"
    )
    layers: int | None = Field(
        None, ge=1, description="remove exactly this many layers"
    )
    ratio: float = Field(
        0.25, gt=0, lt=1, description="remove round(ratio x layers) layers"
    )
    protect: tuple[int, ...] = Field((), description="layers never offered for removal")
    forward_batch: int = Field(
        8,
        ge=1,
        description="blocks in a batch where layers are only looked at; of long blocks fewer",
    )
    offload: Literal["none", "cpu", "disk"] = Field(
        "none",
        description="where layers lie until they run, of a model larger than the device",
    )


class Training(Section):
    """What regularisation and recovery have in common."""

    epochs: float = Field(
        0.0, ge=0, description="passes over the calibration blocks; 0: skip this step"
    )
    batch: int = Field(8, ge=1, description="blocks in a batch")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="blocks at once, for the same batch; null: all of it, on a CPU 2,048 tokens, or as many as fit",
    )
    optimizer: Literal["auto", "adamw", "muon"] = Field(
        "auto",
        description="muon: for the matrices inside the layers; auto: as lr, adamw where lr is given",
    )
    lr: Rate | Auto = Field(
        "auto", description="peak learning rate; auto: chosen on held-out blocks"
    )
    warmup: float = Field(
        0.03, ge=0, lt=1, description="share of the steps with a rising learning rate"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    adapter_rank: int = Field(
        0,
        ge=0,
        description="rank of LoRA adapters, merged afterwards; 0: train all weights",
    )
    gradient_checkpointing: bool = Field(
        False, description="less memory, more time: compute each layer twice"
    )
    compile: bool = Field(
        False,
        description="torch.compile each layer: faster on a GPU after the first half minute",
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
    one_by_one: bool = Field(
        False, description="shrink one layer after another, each then switched off"
    )


class Compensate(Choice):
    """Mend the shallower model: with nothing trained, or with single layers trained by themselves."""

    catalogue = COMPENSATIONS

    method: str = Field(
        AUTO, description="none, or a compensation; auto: refit, where AdamW recovers"
    )
    batch: int = Field(8, ge=1, description="blocks in a batch")

    @property
    def entry(self) -> str | None:
        """Return the name of the compensation whose settings count; None where there is none."""
        return MENDING if self.method == AUTO else super().entry


class Recover(Training, Choice):
    """Train the shallower model on the calibration blocks."""

    catalogue = RECOVERIES
    chooser = "mode"

    mode: str = Field(
        "distil", description="none, or a recovery; an unknown name lists them all"
    )
    epochs: float = Field(
        6.3,
        ge=0,
        description="passes over the calibration blocks, search for lr and training of compensate included",
    )
    batch: int = Field(4, ge=1, description="blocks in a batch")

    @property
    def is_idle(self) -> bool:
        """Say whether nothing is recovered."""
        return self.mode == NONE or not self.epochs

    @property
    def written(self) -> int:
        """Return how many blocks the dense model writes for each of calibration; 0 where the recovery asks for none.

        ``auto`` follows from the budget: as many as can be passed once, with the calibration blocks.
        """
        wanted = getattr(self._own, "synthetic", 0)
        if wanted == "auto":
            return min(MOST_WRITTEN, max(0, int(self.epochs) - 1))
        return int(wanted)

    @property
    def drawn_by_sums(self) -> bool:
        """Say whether a CPU draws their tokens by the sums of all shares."""
        return getattr(self._own, "drawing", "sums") == "sums"

    @property
    def keeps_states(self) -> bool:
        """Say whether what the dense model makes of each block is kept, where one process works."""
        return getattr(self._own, "keeps_states", False)

    @property
    def _own(self) -> Section | None:
        """Return the settings of the recovery; None where there is none."""
        return None if self.mode == NONE else self.settings_of(self.mode)
