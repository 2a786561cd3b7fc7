"""Every number that a run depends on: one frozen section a step, unknown keys refused, all faults listed at once.

``params.yaml`` holds the same sections; ``--set section.key=value`` overrides one value. A selection, a compensation or
a recovery brings its own settings along: `elder.params.catalogue`.
"""

from elder.params.catalogue import AUTO, NONE
from elder.params.inputs import Calibration, Model
from elder.params.measure import Evaluate, Gate, Speed
from elder.params.recipe import (
    MENDING,
    Compensate,
    Recover,
    Regularise,
    Select,
    Training,
)
from elder.params.section import Auto, Choice, Rate, Section, Strength
from elder.params.services import (
    Energy,
    Launch,
    Notify,
    Registry,
    Signing,
    Store,
)

__all__ = [
    "Auto",
    "Calibration",
    "Choice",
    "Compensate",
    "Energy",
    "Evaluate",
    "Gate",
    "Launch",
    "Model",
    "Notify",
    "Params",
    "Rate",
    "Recover",
    "Registry",
    "Regularise",
    "Section",
    "Select",
    "Signing",
    "Speed",
    "Store",
    "Strength",
    "Training",
]


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
    launch: Launch = Launch()

    @property
    def compensation(self) -> str:
        """Return the name of the compensation, or ``none``.

        ``auto`` mends before a recovery by AdamW, or one that may yet choose it: Muon recovers as well without
        (docs/recipe.md).
        """
        wanted = self.compensate.method
        if wanted != AUTO:
            return wanted
        by_muon = self.recover.optimizer == "muon"
        if self.recover.is_idle or by_muon or self.regularise.anneal:
            return NONE
        return MENDING
