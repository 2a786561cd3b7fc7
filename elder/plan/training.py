"""What one training takes: trials, steps and what its optimiser keeps."""

from dataclasses import dataclass

import torch

from elder import params
from elder.plan import work
from elder.plan.case import Case
from elder.plan.estimate import Estimate, beside
from elder.plan.simulate import Need, simulate
from elder.training.micro_batch import blocks_to_learn
from elder.training.optim import layer_matrices
from elder.training.search import HELD_OUT_SHARE
from elder.training.tune import OPTIMIZER, Grids, Objective

# that AdamW reads and writes for each weight in a step: weight, gradient and two moments
OPTIMISER_BYTES = 28
NEWTON_SCHULZ = 5  # iterations of Muon
FORWARD_SHARE = 1 / 3  # of a step's operations


@dataclass(frozen=True)
class Training:
    """A training that is planned.

    Attributes:
        case: the compression.
        settings: of the training.
        layers: of the model that trains.
        make_loss: makes its loss.
        dtype: of its weights.
        grids: what is tried for values that are ``auto``.
    """

    case: Case
    settings: params.Training
    layers: int
    make_loss: work.MakeLoss
    dtype: torch.dtype
    grids: Grids

    def estimate(self, name: str, weights: float) -> Estimate:
        """Return what the stage takes.

        Args:
            name: of the stage.
            weights: bytes of all weights that it finds.
        """
        settings, trials = self.settings, self._trials()
        need = self._step()
        steps = max(1, int(settings.epochs * self.case.samples / settings.batch))
        judged = trials * HELD_OUT_SHARE * self.case.samples / settings.batch
        (peak,) = beside(weights, need)
        moving = 0 if settings.adapter_rank else self._weights()
        return Estimate(
            name=name,
            mode=self._mode(),
            peaks=(peak,),
            batch=settings.batch,
            micro_batch=self._at_once(),
            flops=need.flops * (steps + judged * FORWARD_SHARE),
            moved=float(steps * OPTIMISER_BYTES * moving),
        )

    def _trials(self) -> int:
        """Return how many trials there are; 0 where nothing is tried."""
        count = Objective(_no_loss, self.grids).trials()
        return count if count > 1 else 0

    def _step(self) -> Need:
        """Return what one step takes; where Muon may be chosen, with its operations."""
        dtypes = self.dtype, self.case.compute
        piece = {"micro_batch": self._at_once()}
        named = self._optimizer()
        chosen = "muon" if named == "muon" else "adamw"
        one = work.fit(
            self.settings.model_copy(update=piece),
            self.make_loss,
            dtypes,
            chosen,
        )
        need = simulate(
            self.case.shape,
            self.layers,
            one,
        )
        if named == "auto":
            return Need(need.phases, need.flops + self._muon_flops())
        return need

    def _optimizer(self) -> str:
        if self.settings.adapter_rank:
            return "adamw"
        named = self.settings.optimizer
        return "adamw" if named == "auto" and OPTIMIZER not in self.grids else named

    def _muon_flops(self) -> float:
        """Return the operations that make one update of all matrices orthogonal."""
        flops = 0
        for matrix in layer_matrices(self.case.dense):
            short, long = sorted(matrix.shape)
            flops += NEWTON_SCHULZ * (4 * short**2 * long + 2 * short**3)
        return flops * self.layers / self.case.layers

    def _weights(self) -> int:
        case = self.case
        return case.parameters if self.layers == case.layers else case.parameters_left

    def _at_once(self) -> int:
        case, settings = self.case, self.settings
        wanted = blocks_to_learn(settings, case.shape.seq_len, case.on_cpu)
        return min(wanted, settings.batch)

    def _mode(self) -> str:
        settings = self.settings
        mode = "all weights"
        if settings.adapter_rank:
            mode = f"adapters of rank {settings.adapter_rank}"
        if settings.gradient_checkpointing:
            mode += ", each layer computed twice"
        return mode


def _no_loss(_: object) -> work.LossFunction:
    raise AssertionError("trials are counted, and none is run")
